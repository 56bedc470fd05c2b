"""The gateway as a process: bind, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator

import uvicorn

from mlx_router.gateway.app import build_app
from mlx_router.gateway.reload import Reloader
from mlx_router.gateway.service import Gateway
from mlx_router.gateway.wire import GuardedProtocol
from mlx_router.http.process import Server, bind, run

log = logging.getLogger(__name__)

GC_ALLOCATIONS = 20_000  # a request leaves few cycles behind; looking for them every 700 objects costs more


def serve(gateway: Gateway, *, parent_pid: int | None = None, listener: socket.socket | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until the parent process is gone; running answers end first.

    Raises ConfigError where the socket cannot be bound.
    """
    config = gateway.setup.config
    listener = listener or bind(config.gateway.host, config.gateway.port, "gateway")
    protocol = type("Protocol", (GuardedProtocol,), {"limits": gateway.limits})

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await gateway.start()
        reloader = Reloader(gateway)
        reloader.start()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.reload)
        try:
            yield
        finally:
            await reloader.stop()
            await gateway.stop()

    def drain() -> None:
        gateway.draining = True

    async def main() -> None:
        server = Server(
            uvicorn.Config(
                build_app(gateway),
                http=protocol,
                ws="none",
                loop="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=int(config.gateway.drain_timeout_s) or 1,
            ),
            drain,
        )
        async with lifespan():
            if parent_pid is not None:
                server.leave_with(parent_pid)
            gc.collect()
            gc.freeze()  # what lives as long as the process need not be looked at again
            gc.set_threshold(GC_ALLOCATIONS, 20, 20)
            log.info("event=listening host=%s port=%d", *listener.getsockname()[:2])
            await server.serve(sockets=[listener])

    run(main)
