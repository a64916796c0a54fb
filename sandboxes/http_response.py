"""The answer to an HTTP request, so passed on that its end can be told from a cut (RFC 9112, 6.3 and 7.1).

An answer that does not say how long it is ends with its connection. One that we cut would look complete, and so would
one whose server broke off, since no reset comes through to the sandbox. So to a client of HTTP/1.1 such an answer goes
on in chunks, the last of which comes only when the server has ended it. All others, and what is no answer, pass as they
are. Pure.
"""

from __future__ import annotations

import re
from typing import final

MAX_HEAD_BYTES = 64 * 1024
"""An answer with a longer head passes as it is."""

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_FRAMING = (b"content-length", b"transfer-encoding")
_BEGIN = b"HTTP/1."


@final
class Answer:
    """What a client is given of what a server answers to the request with this head."""

    def __init__(self, request: bytes) -> None:
        first = request.partition(b"\r\n")[0]
        self._head: bytes | None = b""
        if first.startswith(b"HEAD ") or not first.endswith(b"HTTP/1.1"):
            self._head = None
        self._chunked = False

    def feed(self, data: bytes) -> bytes:
        """What is passed on of what has come."""
        if self._head is None:
            return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked and data else data
        self._head += data
        passed = b""
        while self._head is not None:
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if not self._head.startswith(_BEGIN[: len(self._head)]) or b"\n\n" in head or len(head) > MAX_HEAD_BYTES:
                return passed + self._release()
            if not end:
                return passed
            status, framed = _read(head)
            if status is None or status in (101, 204, 304) or (status >= 200 and framed):
                return passed + self._release()
            if status < 200:  # another comes behind it
                passed, self._head = passed + head + end, rest
                continue
            self._head, self._chunked = None, True
            passed += b"HTTP/1.1" + head[len("HTTP/1.1") :] + b"\r\nTransfer-Encoding: chunked" + end + self.feed(rest)
        return passed

    def end(self) -> bytes:
        """What is passed on when the server has ended it."""
        return b"0\r\n\r\n" if self._chunked else self._release()

    def _release(self) -> bytes:
        held, self._head = self._head or b"", None
        return held


def _read(head: bytes) -> tuple[int | None, bool]:
    """The status, None if there is none, and whether the head says how long the body is."""
    first, *lines = head.split(b"\r\n")
    found = _STATUS.fullmatch(first)
    names = (line.partition(b":")[0].strip().lower() for line in lines)
    return None if found is None else int(found[1]), any(name in _FRAMING for name in names)
