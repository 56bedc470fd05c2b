"""Ports: free ones for those who do not care, and who is on the others."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

import psutil

from mlx_router.errors import SupervisorError
from mlx_router.supervisor.spec import ChildSpec


def free_ports(names: Iterable[str]) -> dict[str, int]:
    """A free loopback port for each name, all different."""
    sockets = {name: socket.socket() for name in names}
    try:
        for item in sockets.values():
            item.bind(("127.0.0.1", 0))
        return {name: int(item.getsockname()[1]) for name, item in sockets.items()}
    finally:
        for item in sockets.values():
            item.close()


def check_free(specs: Iterable[ChildSpec]) -> None:
    """Raises SupervisorError that names every port in use, and by whom where the system tells."""
    problems = []
    for spec in specs:
        problem = _problem(spec.host, spec.port)
        if problem:
            problems.append(f"{spec.name}: port {spec.port} on {spec.host} {problem}")
    if problems:
        raise SupervisorError.from_problems("cannot listen; `--free-ports` takes other ports", problems)


def _problem(host: str, port: int) -> str:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return f"cannot be used: {error.strerror or error}"
        owner = _owner(port)
        return f"is in use by {owner}" if owner else "is in use by another program"
    return ""


def _owner(port: int) -> str:
    """Who listens on a port, where we may know."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})" if connection.pid else ""
    except psutil.Error:  # macOS tells root only
        pass
    return ""
