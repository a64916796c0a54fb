"""Lines of JSON-RPC: cut out of a stream of bytes and put into one, with nothing held that is too long or not read.

What is too long is skipped to its end; of it only both edges are kept, in which the id of a request is looked for, so
that whoever sent it is told. Used by one thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import select
import termios
from array import array
from collections.abc import Iterator
from typing import Any, NoReturn, final

MOST_LINE = 16 << 20
"""The bytes of one message that is dealt with."""

_EDGE = 4096
_ID = rb'"id"\s*:\s*(-?[0-9]{1,18}|"[^"\\]{0,200}")'
_FIRST = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?' + _ID + rb"\s*,")
_LAST = re.compile(rb",\s*" + _ID + rb'\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$')
_RESULT = re.compile(rb'\{"jsonrpc":"2\.0","id":(-?[0-9]{1,18}|"[^"\\]{0,200}"),"result":\{')

Message = dict[str, Any]
"""A JSON-RPC message, of which nothing is certain but that it is an object."""


@final
class TooLong:
    """A line that was too long: the `id` of the request that it was, if its edges tell."""

    def __init__(self, head: bytes, tail: bytes) -> None:
        found = _FIRST.match(head) or _LAST.search(tail)
        self.id: int | str | None = None if found is None else json.loads(found[1].decode("utf-8", "replace"))


@final
class Lines:
    """Cuts what comes into lines of at most `most` bytes."""

    def __init__(self, most: int = MOST_LINE) -> None:
        self._most = most
        self._begun = bytearray()
        self._head, self._tail = b"", b""

    def feed(self, data: bytes) -> Iterator[bytes | TooLong]:
        """The lines that end in `data`, without their ends; empty ones are left out."""
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._take(part)
            if self._head:
                yield TooLong(self._head, self._tail)
            elif line := bytes(self._begun).strip():
                yield line
            self._begun.clear()
            self._head = self._tail = b""
        self._take(rest)

    def _take(self, part: bytes) -> None:
        if self._head:
            self._tail = (self._tail + part)[-_EDGE:]
            return
        self._begun += part
        if len(self._begun) > self._most:
            self._head, self._tail = bytes(self._begun[:_EDGE]), bytes(self._begun[-_EDGE:])
            self._begun.clear()


@final
class Outbox:
    """What is to be written to a descriptor, as far as it takes it. The descriptor stays as it is, since others may
    have it: no write is larger than what one that is ready takes without blocking; half of an empty pipe, so that
    others find room too."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._held = bytearray()

    def __len__(self) -> int:
        return len(self._held)

    def put(self, line: bytes) -> None:
        """Add a line."""
        self._held += line + b"\n"

    def flush(self) -> None:
        """Write some of it; to be called when the descriptor is ready. Raises `OSError` when nobody reads any more."""
        written = os.write(self.fd, self._held[: self._free()])
        del self._held[:written]

    def _free(self) -> int:
        held = array("i", [1])
        with contextlib.suppress(OSError):  # it is no pipe
            fcntl.ioctl(self.fd, termios.FIONREAD, held)
            if held[0] == 0:
                return fcntl.fcntl(self.fd, fcntl.F_GETPIPE_SZ) // 2
        return select.PIPE_BUF


def encode(message: Message) -> bytes:
    """A message as a line, without its end. Raises `ValueError` if there is half a character in it."""
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def decode(line: bytes) -> object:
    """What stands in a line. Raises `ValueError` if it is no JSON, `RecursionError` if it is nested too deeply."""
    return json.loads(line.decode(), parse_constant=_no_number, parse_float=_finite)


def said(line: bytes) -> object:
    """What our worker says in a line, but not what it gives as a result: that is the client's alone, and to decode a
    large one costs as much as to make it. Raises as `decode`."""
    found = _RESULT.match(line)
    return decode(line) if found is None else {"id": json.loads(found[1]), "result": {}}


def failure(number: int | str | None, code: int, text: str, /, **data: object) -> Message:
    """An error as the answer to the request of this id; to nobody's, if it is None."""
    error: Message = {"code": code, "message": text}
    return {"jsonrpc": "2.0", "id": number, "error": error | ({"data": data} if data else {})}


def _finite(text: str) -> float:
    number = float(text)
    if number in (math.inf, -math.inf):
        _no_number(text)
    return number


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
