"""The server: an address, and the application until a signal ends it.

Tested in tests/cli/serving/test_server.py.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from octavo.errors import InputError, optional_import

with optional_import("uvicorn", "serve", "serve language models"):
    import uvicorn

_PATIENCE_S = 30  # how long texts under way may go on after a signal to end


def bound(host: str, port: int) -> socket.socket:
    """A socket at the address; port 0 takes any that is free.

    Raises:
        InputError: another program has it, or it is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen()  # from now on it is ours; who comes before the model is read waits
    except (OSError, OverflowError) as error:
        made.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} of {host} is in use by another program: choose one by --port, or "
                "--port 0 for any that is free"
            ) from error
        raise InputError(f"cannot listen at {host}:{port}: {error}") from error
    return made


def server_of(app: Any) -> uvicorn.Server:
    """What serves an application by ``run(sockets=[...])``, until Ctrl-C or a signal to end: no
    request is taken then, and texts under way are written on for up to 30 seconds.
    """
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=_PATIENCE_S
    )
    return uvicorn.Server(config)
