"""The server's socket, opened before anything else: a taken port leaves no store behind."""

from __future__ import annotations

import socket

from tiebreak.errors import MachineError


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        MachineError: the port is taken, or the address does not belong to this machine.
    """
    try:
        listening = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=256
        )
    except OSError as error:
        raise MachineError(
            f"cannot listen on {host}:{port}: {error.strerror}. Give another --port, or stop the program that uses it"
        ) from error
    # asyncio sets TCP_NODELAY only on sockets with an explicit protocol, which create_server's lack; without it, a
    # reply's head waits up to 40 ms for its body
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
