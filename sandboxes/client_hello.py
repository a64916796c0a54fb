"""The server's name in the first message of a TLS connection (RFC 8446, 4.1.2; RFC 6066, 3). Pure.

The message may come in several records, and these in any pieces. Of an encrypted hello (ECH) the outer one is read.
"""

from __future__ import annotations

MAX_BYTES = 32 * 1024
"""How long the records may be together that hold the message."""

_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 22, 1, 0, 0


class Incomplete(Exception):
    """More of it has to come."""


class NotTls(ValueError):
    """It is not the beginning of a TLS connection, or malformed."""


def server_name(data: bytes) -> str | None:
    """The name that a client sends first; None if it sends none. Raises `Incomplete` and `NotTls`."""
    hello = _Reader(_message(data))
    hello.take(2 + 32)
    for size in (1, 2, 1):  # session, cipher suites, compression
        hello.take(hello.number(size))
    if not hello.left:
        return None
    extensions = _Reader(hello.take(hello.number(2)))
    found: list[bytes] = []
    while extensions.left:
        kind, content = extensions.number(2), _Reader(extensions.take(extensions.number(2)))
        if kind == _SERVER_NAME:
            names = _Reader(content.take(content.number(2)))
            while names.left:
                if names.number(1) != _HOST_NAME:
                    raise NotTls("it names its server in an unknown way")
                found.append(names.take(names.number(2)))
    if len(found) > 1:
        raise NotTls("it names more than one server")
    try:
        return found[0].decode("ascii") if found else None
    except UnicodeDecodeError as error:
        raise NotTls("it names a server that is not ASCII") from error


def _message(data: bytes) -> bytes:
    """The body of the first handshake message, put together from its records."""
    message, place = b"", 0
    while True:
        if len(message) >= 4:
            if message[0] != _CLIENT_HELLO:
                raise NotTls("it does not begin with a client's hello")
            if len(message) >= (end := 4 + int.from_bytes(message[1:4], "big")):
                return message[4:end]
        if not bytes((_HANDSHAKE, 3)).startswith(data[place : place + 2]):
            raise NotTls("it does not begin with a handshake")
        if place >= MAX_BYTES:
            raise NotTls("its hello is too long")
        if len(data) < place + 5:
            raise Incomplete
        size = int.from_bytes(data[place + 3 : place + 5], "big")
        if not size or size > 1 << 14:
            raise NotTls("it has an impossible record")
        if len(data) < place + 5 + size:
            raise Incomplete
        message += data[place + 5 : place + 5 + size]
        place += 5 + size


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._place

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise NotTls("its hello is malformed")
        self._place += size
        return self._data[self._place - size : self._place]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")
