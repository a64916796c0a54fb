"""The worker's end of the pipes to the front: messages for the SDK, and signs of life.

A sign of life is given by the same loop that serves calls, so one that is stuck gives none; it tells how far the log
has come. Nothing is read from standard input or written to standard output by anybody else: both are moved away before
anything is loaded, so that what prints does not speak to the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any, final

import anyio
import mcp_types
from mcp.shared.message import SessionMessage

from sandkeep.sandboxes.mcp_lines import MOST_LINE, encode, failure
from sandkeep.sandboxes.mcp_session import ALIVE, PING

_MOST = MOST_LINE + (1 << 20)
_PING = encode({"jsonrpc": "2.0", "method": PING}) + b"\n"
_logger = logging.getLogger(__name__)

Serve = Callable[[Any, Any], Awaitable[None]]
"""Serves a session on a stream of what comes and one of what goes."""


def moved() -> tuple[int, int]:
    """Standard input and output, moved to descriptors that nothing else knows."""
    found = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return found


@final
class Pipes:
    """The pipes to the front. Used by one event loop."""

    def __init__(self, head: Callable[[], int | None], hung_up: Callable[[], None]) -> None:
        self._head, self._hung_up = head, hung_up
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def open(self, stdin: int, stdout: int) -> None:
        """Take over the descriptors, and tell that we live."""
        loop = asyncio.get_running_loop()
        self._reader = asyncio.StreamReader(_MOST)
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._reader), os.fdopen(stdin, "rb", buffering=0)
        )
        transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(stdout, "wb", buffering=0)
        )
        transport.set_write_buffer_limits(0)
        self._writer = asyncio.StreamWriter(transport, protocol, self._reader, loop)
        await self.tell()

    async def tell(self) -> None:
        """Give a sign of life; when this returns the front will read it, even if we die."""
        params = {"head": self._head()}
        await self._write(json.dumps({"jsonrpc": "2.0", "method": ALIVE, "params": params}).encode())

    async def serve(self, serve: Serve) -> None:
        """Serve until the front closes its end."""
        given, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outgoing, answers = anyio.create_memory_object_stream[SessionMessage](0)
        async with anyio.create_task_group() as group:
            group.start_soon(self._read, given)
            group.start_soon(self._send, answers)
            await serve(incoming, outgoing)
            group.cancel_scope.cancel()

    async def _read(self, given: anyio.abc.ObjectSendStream[SessionMessage | Exception]) -> None:
        async with given:
            while line := await self._reader.readline():
                if line == _PING:
                    await self.tell()
                    continue
                try:
                    message = mcp_types.jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError as error:
                    await self._refuse(line, error)
                    continue
                with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    await given.send(SessionMessage(message))
            self._hung_up()

    async def _send(self, answers: anyio.abc.ObjectReceiveStream[SessionMessage]) -> None:
        async for answer in answers:
            await self._write(answer.message.model_dump_json(by_alias=True, exclude_unset=True).encode())

    async def _refuse(self, line: bytes, error: ValueError) -> None:
        """Answer what the SDK takes for no message, though the front did not."""
        with contextlib.suppress(ValueError, RecursionError, LookupError, TypeError):
            number = json.loads(line)["id"]
            text = "that is no message of this protocol; see its method and parameters"
            await self._write(json.dumps(failure(number, -32600, text)).encode())
        _logger.warning("dropped what is no message: %s", type(error).__name__)

    async def _write(self, line: bytes) -> None:
        self._writer.write(line + b"\n")
        with contextlib.suppress(ConnectionError):  # the front is gone, which the reader sees
            await self._writer.drain()
