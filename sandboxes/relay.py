"""Bytes between a sandbox and a server, counted, both ways at once, with bounded memory.

In a tunnel a direction that has ended is ended on the other side too, and the other goes on. In an exchange only the
body of the one request goes to the server: what a client sends behind it, as if there were another request, goes
nowhere; and it is over when the server has ended its answer, which the client can tell from one that was cut (see
`http_response`). Silence both ways is ended after `idle_seconds`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Coroutine
from typing import final

from sandkeep.sandboxes.client_hello import Incomplete, NotTls
from sandkeep.sandboxes.http_request import BadRequest, Request
from sandkeep.sandboxes.http_response import Answer

Check = Callable[[bytes], None]
"""Looks at the first bytes of a tunnel: returns to let them pass; raises `Incomplete` for more, `NotTls` to refuse."""

_CHUNK = 1 << 16
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e]*)?\r\n")


@final
class Relay:
    """The two ends of a connection, and how many bytes were `sent` to the server and `received` from it."""

    def __init__(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        idle_seconds: float,
    ) -> None:
        self._reader, self._writer = client
        self._server_reader, self._server_writer = server
        self._idle_seconds = idle_seconds
        self._patience: asyncio.Timeout | None = None
        self._first = b""
        self.sent = self.received = 0

    async def say(self, data: bytes) -> None:
        """Tell the client something of our own."""
        self._writer.write(data)
        await self._writer.drain()

    async def peek(self, check: Check) -> None:
        """Read what the client sends until `check` lets it pass, and keep it. Raises `NotTls`."""
        while True:
            data = await self._reader.read(_CHUNK)
            self._first += data
            try:
                return check(self._first)
            except Incomplete:
                if not data:
                    raise NotTls("it ended before it began") from None

    async def tunnel(self, check: Check | None = None) -> None:
        """Pass everything both ways; the client's first bytes only once `check`, if there is one, lets them.

        Raises `NotTls`, `TimeoutError` and `OSError`.
        """

        async def out() -> None:
            if check is not None:
                try:
                    await self.peek(check)
                except NotTls:
                    if self._first:
                        raise
            await self._out(self._first)
            while data := await self._reader.read(_CHUNK):
                await self._out(data)
            with contextlib.suppress(OSError):
                self._server_writer.write_eof()

        async with asyncio.timeout(self._idle_seconds) as self._patience:
            await _both(out(), self._in(), first_is_enough=False)

    async def exchange(self, request: Request) -> None:
        """Pass one request out, and all that the server answers in. Raises `BadRequest` and as `tunnel` does."""

        async def out() -> None:
            await self._out(request.head)
            try:
                if request.body == "chunked":
                    await self._chunks()
                else:
                    await self._exactly(request.body)
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                raise BadRequest("its body is cut off") from error

        async with asyncio.timeout(self._idle_seconds) as self._patience:
            await _both(self._in(Answer(request.head)), out(), first_is_enough=True)

    async def _chunks(self) -> None:
        """Pass a chunked body (RFC 9112, 7.1), written anew: without extensions and trailers."""
        while True:
            found = _SIZE.fullmatch(await self._reader.readuntil(b"\r\n"))
            if found is None:
                raise BadRequest("its body has a malformed chunk")
            if not (size := int(found[1], 16)):
                break
            await self._out(b"%x\r\n" % size)
            await self._exactly(size)
            if await self._reader.readexactly(2) != b"\r\n":
                raise BadRequest("its body has a chunk that is longer than it says")
            await self._out(b"\r\n")
        await self._out(b"0\r\n\r\n")

    async def _exactly(self, size: int) -> None:
        while size:
            data = await self._reader.read(min(size, _CHUNK))
            if not data:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(data)
            await self._out(data)

    async def _out(self, data: bytes) -> None:
        # A server that stops to listen may still have answered: what it sends is read to its end.
        with contextlib.suppress(OSError):
            self._server_writer.write(data)
            await self._server_writer.drain()
            self.sent += len(data)
        self._heard()

    async def _in(self, answer: Answer | None = None) -> None:
        while data := await self._server_reader.read(_CHUNK):
            self._writer.write(data if answer is None else answer.feed(data))
            await self._writer.drain()
            self.received += len(data)
            self._heard()
        if answer is not None:
            await self.say(answer.end())
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    def _heard(self) -> None:
        if self._patience is not None:
            self._patience.reschedule(asyncio.get_running_loop().time() + self._idle_seconds)


async def _both(
    first: Coroutine[None, None, None], second: Coroutine[None, None, None], *, first_is_enough: bool
) -> None:
    """Run both to their end, or to that of the first; what either raises ends the other."""
    tasks = [asyncio.ensure_future(first), asyncio.ensure_future(second)]
    try:
        waiting = set(tasks)
        while waiting and not (first_is_enough and tasks[0].done()):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
