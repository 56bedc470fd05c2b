"""The gateway as a process: bind, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn

from mlx_router.config import Config
from mlx_router.errors import ConfigError
from mlx_router.gateway.app import build_app
from mlx_router.gateway.reload import Reloader
from mlx_router.gateway.service import Gateway
from mlx_router.gateway.wire import GuardedProtocol

log = logging.getLogger(__name__)

PARENT_CHECK_S = 0.5
GC_ALLOCATIONS = 20_000  # a request leaves few cycles behind; looking for them every 700 objects costs more
ORPHAN_DRAIN_S = 5


def bind(config: Config) -> socket.socket:
    """The listening socket. Raises ConfigError where the port is taken or the address is not ours."""
    host, port = config.gateway.host, config.gateway.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} on {host} is in use by another program (gateway.port)") from error
        raise ConfigError(f"gateway.host = {host!r}, port {port}: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


class _Server(uvicorn.Server):
    """uvicorn's server with signal handlers that only note the signal, so that everything is closed in order."""

    def __init__(self, config: uvicorn.Config, on_drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_drain = on_drain

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        yield
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_drain()
        await super().shutdown(sockets)

    def _signalled(self) -> None:
        """The first signal drains, the second one does not wait."""
        self.force_exit = self.should_exit
        self.should_exit = True


def serve(gateway: Gateway, *, parent_pid: int | None = None, listener: socket.socket | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until the parent process is gone; running answers end first.

    Raises ConfigError where the socket cannot be bound.
    """
    config = gateway.setup.config
    listener = listener or bind(config)
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
        server = _Server(
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
                _watch_parent(parent_pid, server)
            gc.collect()
            gc.freeze()  # what lives as long as the process need not be looked at again
            gc.set_threshold(GC_ALLOCATIONS, 20, 20)
            log.info("event=listening host=%s port=%d", *listener.getsockname()[:2])
            await server.serve(sockets=[listener])

    _run(main)


def _watch_parent(parent_pid: int, server: uvicorn.Server) -> None:
    """Leave when the process that started us is gone: nobody would stop us otherwise."""
    if os.getppid() == parent_pid:
        asyncio.get_running_loop().call_later(PARENT_CHECK_S, _watch_parent, parent_pid, server)
        return
    log.warning("event=parent_gone parent_pid=%d", parent_pid)
    server.config.timeout_graceful_shutdown = ORPHAN_DRAIN_S
    server.should_exit = True


def _run(main: Callable[[], object]) -> None:
    """On uvloop where it is there."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())  # type: ignore[arg-type]
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())  # type: ignore[arg-type]
