"""What the tests of the egress proxy share: a proxy with a policy and a resolver of their own, servers, and clients."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, ParamSpec

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Service
from sandkeep.projections import NetworkPolicy
from sandkeep.sandboxes import network_policy
from sandkeep.sandboxes.egress_proxy import EgressProxy, NotReached
from sandkeep.sandboxes.egress_record import EgressRecord
from sandkeep.sandboxes.host import Address
from sandkeep.sandboxes.network_policy import Ruling
from sandkeep.sandboxes.service import service, target
from sandkeep.sandboxes.settings import NetworkGrants

P = ParamSpec("P")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

TASK = "0123456789ab"
WAIT_SECONDS = 30.0


def scenario(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an asynchronous test, for a while at most."""

    @functools.wraps(test)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(3 * WAIT_SECONDS):
                await test(*arguments, **options)

        asyncio.run(bounded())

    return run


class World:
    """A proxy that serves one task, what it may reach, what names resolve to, and what was recorded."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.policy, self.grants = NetworkPolicy(), NetworkGrants()
        self.names: dict[str, list[str]] = {}
        self.running: dict[str, int] = {}
        self.resolved: list[str] = []
        self.events: list[Event] = []
        self.most = options.pop("most", 1000)
        self.path = folder / "proxy.sock"
        self.record = EgressRecord(self.store, most=self.most)
        self.proxy = EgressProxy(self.rule, self.record, self.reach, resolve=self.resolve, **options)

    def store(self, task: str, event: Event) -> None:
        assert task == TASK
        self.events.append(event)

    def rule(self, task: str, host: str, port: int) -> Ruling:
        return network_policy.rule(self.policy, self.grants, host, port)

    async def reach(self, service: Service) -> tuple[socket.socket, str]:
        if service.task not in self.running:
            raise NotReached("not-running")
        return socket.create_connection(("127.0.0.1", self.running[service.task])), target(service)

    async def resolve(self, name: str) -> list[Address]:
        self.resolved.append(name)
        return [ipaddress.ip_address(each) for each in self.names.get(name, [])]

    def allow(
        self, *allow: str, private: tuple[str, ...] = (), mode: str = "allow", services: tuple[str, ...] = ()
    ) -> None:
        """Set the policy, with the grants that it needs."""
        self.grants = NetworkGrants(open=True, private=private)
        event = network_policy.policy_event(mode, allow, private, self.grants)
        self.policy = NetworkPolicy(event.mode, event.allow, tuple(map(service, services)))

    def of(self, kind: type[Event]) -> list[Any]:
        """The events of a type."""
        return [event for event in self.events if type(event) is kind]

    @property
    def denied(self) -> list[str]:
        """Why connections were refused."""
        return [event.reason for event in self.of(ev.ConnectionDenied)]

    async def connect(self) -> Streams:
        """A connection to the proxy, as the sandbox's forwarder makes it."""
        return await asyncio.open_unix_connection(str(self.path))

    async def ask(self, data: bytes) -> bytes:
        """All that the proxy answers to `data`."""
        reader, writer = await self.connect()
        writer.write(data)
        try:
            return await asyncio.wait_for(reader.read(-1), WAIT_SECONDS)
        finally:
            writer.close()

    async def tunnel(self, host: str, port: int) -> Streams:
        """A tunnel that was granted."""
        reader, writer = await self.connect()
        writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        return reader, writer

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until it holds."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not holds():
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def world(folder: Path, **options: Any) -> AsyncIterator[World]:
    """A proxy that listens in `folder`."""
    made = World(folder, **options)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(made.path))
    listening.listen()
    await made.proxy.serve(TASK, listening)
    try:
        yield made
    finally:
        await made.proxy.close()


@contextlib.asynccontextmanager
async def server(serve: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on the loopback; its port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    async with listening:
        yield int(listening.sockets[0].getsockname()[1])


def keeping(heard: list[bytes], answer: bytes = b"") -> Serve:
    """A server that answers at once, and keeps all it hears until the other side ends."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(b"")
        place = len(heard) - 1
        writer.write(answer)
        while data := await reader.read(1 << 16):
            heard[place] += data

    return serve


def web(seen: list[bytes], answer: bytes = b"hello") -> Serve:
    """A web server for one request with no body, which it keeps."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(answer) + answer)
        await writer.drain()

    return serve


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    """The context of a TLS server with a certificate of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(private + made.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


def trusting() -> ssl.SSLContext:
    """The context of a TLS client that takes any certificate, since only its first message matters here."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def hello(name: str | None) -> bytes:
    """What a real TLS client sends first."""
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        trusting().wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()
