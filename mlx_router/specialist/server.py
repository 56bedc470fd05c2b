"""A specialist as a process: bind, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial

import psutil
import uvicorn

from mlx_router.config import Config, SpecialistConfig
from mlx_router.errors import ConfigError, RouterError
from mlx_router.http.connection import Connection
from mlx_router.specialist.app import make_app
from mlx_router.specialist.registered import installed, registered
from mlx_router.specialist.service import Specialist

log = logging.getLogger(__name__)

PARENT_CHECK_S = 0.5
ORPHAN_DRAIN_S = 5


def bind(settings: SpecialistConfig) -> socket.socket:
    """The listening socket. Raises ConfigError where the port is taken or the address is not ours."""
    host, port = settings.host, settings.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        where = f"specialist {settings.name}: port {port} on {host}"
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{where} is in use by another program") from error
        raise ConfigError(f"{where}: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


class Server(uvicorn.Server):
    """uvicorn's server: the first signal drains, the second does not wait."""

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

    def _signalled(self) -> None:
        self.force_exit = self.should_exit
        self.leave()

    def leave(self) -> None:
        """Take nothing new, end what runs, go."""
        self._on_drain()
        self.should_exit = True


def serve(config: Config, settings: SpecialistConfig, *, parent_pid: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until the parent process is gone; running answers end first.

    Raises ConfigError where the socket cannot be bound, and whatever kept the base from loading.
    """
    listener = bind(settings)
    failure: list[BaseException] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server: Server | None = None

        def failed(error: BaseException) -> None:
            """A base that cannot be loaded ends the process; a thread that dies later shows in /health."""
            if specialist.engine.base is None:
                failure.append(error)
                if server is not None:
                    server.leave()

        specialist = Specialist(
            config,
            settings,
            known=registered(config, settings),
            locate=partial(installed, config.home),
            on_failure=failed,
        )
        server = Server(
            uvicorn.Config(
                make_app(specialist),
                http=Connection,
                ws="none",
                loop="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=max(1, int(settings.drain_s)),
            ),
            specialist.engine.drain,
        )
        if parent_pid is not None:
            _watch_parent(loop, parent_pid, server)
        specialist.engine.start()
        gc.collect()
        gc.freeze()  # what lives as long as the process need not be looked at again
        log.info("specialist=%s host=%s port=%d", settings.name, *listener.getsockname()[:2])
        try:
            await server.serve(sockets=[listener])
        finally:
            await specialist.stop()

    _run(main)
    if failure:
        error = failure[0]
        raise error if isinstance(error, RouterError) else RuntimeError(str(error)) from error


def _watch_parent(loop: asyncio.AbstractEventLoop, parent_pid: int, server: Server) -> None:
    """Leave when the process that started us is gone: nobody would stop us otherwise."""
    direct = os.getppid() == parent_pid

    def look() -> None:
        gone = os.getppid() != parent_pid if direct else not psutil.pid_exists(parent_pid)
        if not gone:
            loop.call_later(PARENT_CHECK_S, look)
            return
        log.warning("parent_pid=%d gone, leaving", parent_pid)
        server.config.timeout_graceful_shutdown = ORPHAN_DRAIN_S
        server.leave()

    look()


def _run(main: Callable[[], object]) -> None:
    """On uvloop where it is there."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())  # type: ignore[arg-type]
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())  # type: ignore[arg-type]
