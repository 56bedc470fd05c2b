"""A specialist as a process: bind, serve, drain."""

from __future__ import annotations

import gc
import logging
from functools import partial

import uvicorn

from mlx_router.config import Config, SpecialistConfig
from mlx_router.errors import RouterError
from mlx_router.http.connection import Connection
from mlx_router.http.process import Server, bind, run
from mlx_router.specialist.app import make_app
from mlx_router.specialist.registered import installed, registered
from mlx_router.specialist.service import Specialist

log = logging.getLogger(__name__)


def serve(config: Config, settings: SpecialistConfig, *, parent_pid: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until the parent process is gone; running answers end first.

    Raises ConfigError where the socket cannot be bound, and whatever kept the base from loading.
    """
    listener = bind(settings.host, settings.port, f"specialist {settings.name}")
    failure: list[BaseException] = []

    async def main() -> None:
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
            server.leave_with(parent_pid)
        specialist.engine.start()
        gc.collect()
        gc.freeze()  # what lives as long as the process need not be looked at again
        log.info("specialist=%s host=%s port=%d", settings.name, *listener.getsockname()[:2])
        try:
            await server.serve(sockets=[listener])
        finally:
            await specialist.stop()

    run(main)
    if failure:
        error = failure[0]
        raise error if isinstance(error, RouterError) else RuntimeError(str(error)) from error
