"""The way out of sandboxes: an HTTP proxy on a unix socket for each task, which lets through what its policy allows.

Plain requests (`GET http://...`) and tunnels (CONNECT) are served, one a connection. For each: the policy is looked up
as it is now; the name is resolved once, here, and only addresses that may be reached are connected to, by number, so
that a second answer changes nothing; it is on record before a byte passes. In a tunnel the first bytes are looked at:
if they begin TLS, the server's name in them has to be the one that was asked for; at the ports of the web (443, 80)
they have to. Heads are bounded in size and time, connections in number, silence in time.

A service (see `service`) is a tunnel or a request to its name: it is connected to by whoever knows where it is now, and
what it is spoken to in is not looked at.

Runs on one asyncio event loop. `review` cuts what the policy does not allow any more. The sandbox is told why it is
refused, in a response. No cache, no log of its own: see `egress_record`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import final

from sandkeep.events import SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Service
from sandkeep.sandboxes import client_hello, http_request
from sandkeep.sandboxes.client_hello import NotTls
from sandkeep.sandboxes.egress_record import EgressRecord
from sandkeep.sandboxes.host import Address, NotAHost, address, host, is_forbidden, is_local, is_public
from sandkeep.sandboxes.http_request import BadRequest, Request
from sandkeep.sandboxes.network_policy import Ruling
from sandkeep.sandboxes.relay import Check, Relay

Rule = Callable[[str, str, int], Ruling]
"""Whether a task may connect to a host at a port, now."""

Resolve = Callable[[str], Awaitable[list[Address]]]
"""The addresses of a name, best first; empty if it has none. Raises `OSError`."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

Reach = Callable[[Service], Awaitable[tuple[socket.socket, str]]]
"""A connection to a service as it is now, and what that is, for the record. Raises `NotReached`."""

WEB_PORTS = (443, 80)
"""Where a tunnel has to begin with TLS."""

MOST_CONNECTIONS = 128
"""How many a task may have at once."""

HEAD_SECONDS, RESOLVE_SECONDS, CONNECT_SECONDS, IDLE_SECONDS = 10.0, 10.0, 10.0, 300.0
SERVICE_IDLE_SECONDS = 3600.0
"""What programs keep open to a database is silent for long."""

_BUFFER = 1 << 16
_MOST_ADDRESSES = 3
_MOST_RESOLVING = 4
_STATUS = {
    "bad-request": "400 Bad Request",
    "too-slow": "408 Request Timeout",
    "head-too-long": "431 Request Header Fields Too Large",
    "too-many": "503 Service Unavailable",
    "not-recorded": "503 Service Unavailable",
    "unresolved": "502 Bad Gateway",
    "unreachable": "502 Bad Gateway",
    "not-running": "502 Bad Gateway",
}
_FORBIDDEN = "403 Forbidden"
_WORDS = {
    "no-network": "this task has no network; 'sandkeep network-policy' can allow hosts",
    "host-not-listed": "the task's network policy does not list this host",
    "port-not-listed": "the task's network policy does not list this port of the host",
    "not-granted": "the keep's settings grant this no more",
    "not-offered": "the task that it belongs to does not offer this port",
    "not-running": "what it belongs to does not run, or is frozen",
    "not-public": "it has no address on the public internet",
    "unresolved": "its name has no address",
    "unreachable": "it does not answer",
    "too-many": "the task has too many connections open",
    "too-slow": "the request did not come in time",
    "head-too-long": "the head of the request is too long",
    "not-recorded": "it cannot be put on record",
}


class NotReached(Exception):
    """A service cannot be connected to; `reason` says why, as in the record."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Refused(Exception):
    def __init__(self, reason: str, words: str = "") -> None:
        self.reason = reason
        self.words = words or _WORDS[reason]


class _Connection:
    """One that is open; `reason` is why it will have ended."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.host, self.port = "", 0
        self.allowed = self.established = False
        self.reason = "ended"
        self.handler = asyncio.current_task()

    def cut(self, reason: str) -> None:
        if self.handler is not None:
            self.reason = reason
            self.handler.cancel()

    def end(self, writer: asyncio.StreamWriter) -> None:
        if self.reason == "ended":
            writer.close()
        else:
            writer.transport.abort()


async def resolve(name: str) -> list[Address]:
    """The addresses that this machine knows for a name."""
    found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    numbers = dict.fromkeys(str(answer[0]).partition("%")[0] for *_, answer in found)
    return [each for each in map(address, numbers) if each is not None]


@final
class EgressProxy:
    """The proxy. `serve` a task, and `stop` to; `close` ends all."""

    def __init__(
        self,
        rule: Rule,
        record: EgressRecord,
        reach: Reach,
        *,
        resolve: Resolve = resolve,
        idle_seconds: float = IDLE_SECONDS,
        head_seconds: float = HEAD_SECONDS,
        web_ports: Collection[int] = WEB_PORTS,
    ) -> None:
        self._rule, self._record, self._reach, self._resolve = rule, record, reach, resolve
        self._idle_seconds, self._head_seconds, self._web_ports = idle_seconds, head_seconds, web_ports
        self._servers: dict[str, asyncio.Server] = {}
        self._open: dict[str, set[_Connection]] = {}
        self._resolving: dict[str, asyncio.Semaphore] = {}

    @property
    def tasks(self) -> frozenset[str]:
        """The tasks that are served."""
        return frozenset(self._servers)

    async def serve(self, task: str, listening: socket.socket) -> None:
        """Serve a task on a listening socket, which is the proxy's from now on."""
        handle = partial(self._handle, task)
        self._servers[task] = await asyncio.start_unix_server(handle, sock=listening, limit=http_request.MAX_HEAD_BYTES)

    def stop(self, task: str) -> None:
        """Serve a task no more, and cut its connections."""
        server = self._servers.pop(task, None)
        if server is not None:
            server.close()
        for connection in list(self._open.get(task, ())):
            connection.cut("stopped")

    def review(self) -> None:
        """Cut every connection that its task's policy does not allow any more."""
        for connection in [each for mine in self._open.values() for each in mine]:
            if connection.allowed and not self._rule(connection.task, connection.host, connection.port).allowed:
                connection.cut("policy-changed")

    async def close(self) -> None:
        """Cut everything, and wait until it is on record."""
        handlers = [each.handler for mine in self._open.values() for each in mine if each.handler is not None]
        for task in self.tasks:
            self.stop(task)
        if handlers:
            await asyncio.wait(handlers)
        await self._record.close()

    async def _handle(self, task: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = self._open.setdefault(task, set())
        connection = _Connection(task)
        mine.add(connection)
        try:
            try:
                await self._serve(connection, len(mine) > MOST_CONNECTIONS, reader, writer)
            except _Refused as refused:
                await self._record.denied(task, connection.host, connection.port, refused.reason)
                if not connection.established:
                    await _answer(writer, connection, refused)
        except (OSError, SandkeepError, asyncio.CancelledError):
            pass  # the sandbox went away, the keep cannot be read, or it was cut
        finally:
            mine.discard(connection)
            if not mine and task not in self._servers:
                self._open.pop(task, None)
                self._resolving.pop(task, None)
            connection.end(writer)

    async def _serve(
        self, connection: _Connection, full: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if full:
            raise _Refused("too-many")
        try:
            async with asyncio.timeout(self._head_seconds):
                head = await reader.readuntil(b"\r\n\r\n")
            request = http_request.parse(head)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise _Refused("bad-request", "the request is cut off") from error
            return
        except TimeoutError as error:
            raise _Refused("too-slow") from error
        except asyncio.LimitOverrunError as error:
            raise _Refused("head-too-long") from error
        except BadRequest as error:
            raise _Refused("bad-request", str(error)) from error
        connection.host, connection.port = request.host, request.port
        ruling = self._rule(connection.task, request.host, request.port)
        if not ruling.allowed:
            raise _Refused(ruling.reason)
        connection.allowed = True
        server, place = await self._connect(connection.task, request, ruling)
        try:
            idle_seconds = self._idle_seconds if ruling.service is None else SERVICE_IDLE_SECONDS
            relay = Relay((reader, writer), server, idle_seconds)
            await self._pass(connection, request, ruling, relay, place)
        finally:
            connection.end(server[1])

    async def _connect(self, task: str, request: Request, ruling: Ruling) -> tuple[Streams, str]:
        """A connection to where a request goes, and what that is, for the record."""
        if ruling.service is None:
            server = await _connect(await self._addresses(task, request, ruling), request.port)
            return server, server[1].get_extra_info("peername")[0]
        try:
            async with self._turn(task):
                made, place = await self._reach(ruling.service)
        except NotReached as error:
            raise _Refused(error.reason) from error
        return await asyncio.open_connection(sock=made, limit=_BUFFER), place

    def _turn(self, task: str) -> asyncio.Semaphore:
        """A turn at what the tasks share few threads for."""
        return self._resolving.setdefault(task, asyncio.Semaphore(_MOST_RESOLVING))

    async def _addresses(self, task: str, request: Request, ruling: Ruling) -> list[Address]:
        """The addresses of the host that may be reached."""
        literal = address(request.host)
        found = [literal] if literal is not None else []
        if literal is None:
            try:
                async with asyncio.timeout(RESOLVE_SECONDS), self._turn(task):
                    found = await self._resolve(request.host)
            except (OSError, UnicodeError) as error:
                raise _Refused("unresolved") from error
        if not found:
            raise _Refused("unresolved")
        may = [each for each in found if _may_be_reached(each, ruling)]
        if not may:
            raise _Refused("not-public")
        return may

    async def _pass(self, connection: _Connection, request: Request, ruling: Ruling, relay: Relay, place: str) -> None:
        """Let a request through, and put on record what came of it."""
        begun = time.monotonic_ns()
        check = partial(_check_name, request) if ruling.listed and request.tunnel else None
        if request.tunnel:
            await relay.say(b"HTTP/1.1 200 Connection established\r\n\r\n")
            connection.established = True
        if check is not None and request.port in self._web_ports:
            await self._greet(relay, partial(check, strict=True))
            check = None
        try:
            number = await self._record.allowed(connection.task, request.host, request.port, place)
        except SandkeepError as error:
            raise _Refused("not-recorded") from error
        try:
            await (relay.tunnel(check) if request.tunnel else relay.exchange(request))
        except TimeoutError:
            connection.reason = "idle"
        except NotTls:
            connection.reason = "name-mismatch"
        except (OSError, BadRequest):
            connection.reason = "broken"
        finally:
            lasted = time.monotonic_ns() - begun
            event = ev.ConnectionClosed(
                number or "", request.host, request.port, relay.sent, relay.received, lasted, connection.reason
            )
            await asyncio.shield(self._record.closed(connection.task, event))

    async def _greet(self, relay: Relay, check: Check) -> None:
        """See that a tunnel to the web begins with TLS, for the host that was asked for."""
        try:
            async with asyncio.timeout(self._head_seconds):
                await relay.peek(check)
        except TimeoutError as error:
            raise _Refused("too-slow") from error
        except NotTls as error:
            raise _Refused("name-mismatch", str(error)) from error


async def _connect(addresses: list[Address], port: int) -> Streams:
    for found in addresses[:_MOST_ADDRESSES]:
        with contextlib.suppress(OSError):  # and a timeout, which is one
            async with asyncio.timeout(CONNECT_SECONDS):
                return await asyncio.open_connection(str(found), port, limit=_BUFFER)
    raise _Refused("unreachable")


def _may_be_reached(found: Address, ruling: Ruling) -> bool:
    if ruling.private:
        return not is_forbidden(found)
    return is_public(found) and not is_local(found)


def _check_name(request: Request, data: bytes, *, strict: bool = False) -> None:
    """Refuse the first bytes of a tunnel, with `NotTls`, if they are for another host than the one asked for.

    Raises `Incomplete` if that cannot be told yet. What is no TLS passes, unless `strict`.
    """
    try:
        name = client_hello.server_name(data)
    except NotTls:
        if strict:
            raise
        return
    try:
        same = address(request.host) is not None if name is None else host(name) == request.host
    except NotAHost:
        same = False
    if not same:
        raise NotTls("the server's name in the TLS hello is not the host that was asked for")


async def _answer(writer: asyncio.StreamWriter, connection: _Connection, refused: _Refused) -> None:
    where = f"{connection.host}:{connection.port} " if connection.host else ""
    text = f"sandkeep: {where}is refused: {refused.words} [{refused.reason}]\n".encode()
    status = _STATUS.get(refused.reason, _FORBIDDEN)
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(text)}\r\n"
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(HEAD_SECONDS):
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + text)
            await writer.drain()
