"""A server as a process: bind, drain at a signal, leave with the parent, run on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import psutil
import uvicorn

from mlx_router.errors import ConfigError

log = logging.getLogger(__name__)

BACKLOG = 2048
PARENT_CHECK_S = 0.5
ORPHAN_DRAIN_S = 5


def bind(host: str, port: int, name: str) -> socket.socket:
    """The listening socket of the server called `name`. Raises ConfigError: port taken, or address not ours."""
    where = f"{name}: port {port} on {host}"
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{where} is in use by another program") from error
        raise ConfigError(f"{where}: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


class Server(uvicorn.Server):
    """uvicorn's server with signal handlers that only note the signal: the first drains, the second does not wait."""

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

    def leave(self) -> None:
        """Take nothing new, end what runs, go."""
        self._on_drain()
        self.should_exit = True

    def leave_with(self, parent_pid: int) -> None:
        """Leave when this process is gone: nobody would stop us otherwise."""
        loop = asyncio.get_running_loop()
        direct = os.getppid() == parent_pid

        def look() -> None:
            if os.getppid() == parent_pid if direct else psutil.pid_exists(parent_pid):
                loop.call_later(PARENT_CHECK_S, look)
                return
            log.warning("event=parent_gone parent_pid=%d", parent_pid)
            self.config.timeout_graceful_shutdown = ORPHAN_DRAIN_S
            self.leave()

        look()

    def _signalled(self) -> None:
        self.force_exit = self.should_exit
        self.leave()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end, on uvloop where it is there."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
