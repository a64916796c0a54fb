"""The egress proxy between real sockets. Servers lie on the loopback, so policies grant them as private; names resolve
to what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from pathlib import Path

import pytest

from sandkeep.events import Event, SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.projections import NetworkPolicy
from sandkeep.sandboxes.egress_proxy import MOST_CONNECTIONS
from sandkeep.sandboxes.host import Address
from sandkeep.sandboxes.http_request import MAX_HEAD_BYTES
from sandkeep.sandboxes.network_policy import Ruling

from .egresses import (
    World,
    certificate,
    hello,
    keeping,
    scenario,
    server,
    trusting,
    web,
    world,
)


def get(host: str, port: int, *more: str) -> bytes:
    headers = "".join(f"{each}\r\n" for each in more)
    return f"GET http://{host}:{port}/path?q HTTP/1.1\r\nHost: {host}:{port}\r\n{headers}\r\n".encode()


def connect(host: str, port: int) -> bytes:
    return f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()


def local(here: World, port: int, name: str = "web.example") -> None:
    """Let the task reach the port of the loopback by a name."""
    here.names[name] = ["127.0.0.1"]
    here.allow(private=(f"{name}:{port}",))


# ---- what is let through


@scenario
async def test_a_plain_request_reaches_its_server_as_one_that_ends(tmp_path: Path) -> None:
    seen: list[bytes] = []
    async with world(tmp_path) as here, server(web(seen)) as port:
        local(here, port)
        answer = await here.ask(get("WEB.example", port, "Connection: keep-alive", "Accept: */*"))
        assert answer.endswith(b"\r\n\r\nhello")
        assert seen == [
            f"GET /path?q HTTP/1.1\r\nHost: web.example:{port}\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode()
        ]
        await here.until(lambda: here.of(ev.ConnectionClosed))
        (allowed,), (closed,) = here.of(ev.ConnectionAllowed), here.of(ev.ConnectionClosed)
        assert (allowed.host, allowed.port, allowed.address) == ("web.example", port, "127.0.0.1")
        assert (closed.connection, closed.host, closed.port) == (allowed.connection, "web.example", port)
        assert (closed.sent, closed.received, closed.reason) == (len(seen[0]), len(answer), "ended")
        assert len(here.events) == 2


@scenario
async def test_nothing_passes_before_it_is_on_record(tmp_path: Path) -> None:
    seen: list[bytes] = []
    async with world(tmp_path) as here, server(web(seen)) as port:
        local(here, port)
        store = here.record._store

        def slow(task: str, event: Event) -> object:
            assert seen == []
            return store(task, event)

        here.record._store = slow
        assert (await here.ask(get("web.example", port))).endswith(b"hello")


@scenario
async def test_what_cannot_be_put_on_record_is_not_let_through(tmp_path: Path) -> None:
    seen: list[bytes] = []
    async with world(tmp_path) as here, server(web(seen)) as port:
        local(here, port)

        def full(task: str, event: Event) -> object:
            raise SandkeepError("the disk is full")

        here.record._store = full
        assert (await here.ask(get("web.example", port))).startswith(b"HTTP/1.1 503 ")
        assert seen == []


@scenario
async def test_a_tunnel_for_the_name_that_was_asked_for_carries_tls(tmp_path: Path) -> None:
    seen: list[bytes] = []
    context = certificate(tmp_path, "web.example")
    async with server(web(seen), context) as port, world(tmp_path, web_ports=(port,)) as here:
        local(here, port)
        reader, writer = await here.tunnel("web.example", port)
        await writer.start_tls(trusting(), server_hostname="web.example")
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert (await reader.read(-1)).endswith(b"hello")
        await here.until(lambda: here.of(ev.ConnectionClosed))
        assert here.of(ev.ConnectionClosed)[0].received > 500
        assert here.denied == []


@scenario
async def test_much_passes_both_ways_at_once_unchanged_and_counted(tmp_path: Path) -> None:
    size = 20_000_000
    data = bytes(range(256)) * (size // 256)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(1 << 16):
            writer.write(part)
            await writer.drain()

    async with world(tmp_path) as here, server(echo) as port:
        local(here, port)
        reader, writer = await here.tunnel("web.example", port)

        async def send() -> None:
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        sending = asyncio.ensure_future(send())
        assert await reader.read(-1) == data
        await sending
        await here.until(lambda: here.of(ev.ConnectionClosed))
        (closed,) = here.of(ev.ConnectionClosed)
        assert (closed.sent, closed.received, closed.reason) == (len(data), len(data), "ended")


@scenario
async def test_a_server_that_speaks_first_is_heard_at_other_ports(tmp_path: Path) -> None:
    heard: list[bytes] = []
    async with world(tmp_path) as here, server(keeping(heard, b"220 welcome\r\n")) as port:
        local(here, port)
        reader, writer = await here.tunnel("web.example", port)
        assert await reader.readline() == b"220 welcome\r\n"
        writer.write(b"EHLO\r\n")
        writer.write_eof()
        assert await reader.read(-1) == b""
        assert heard == [b"EHLO\r\n"]


@scenario
async def test_a_server_that_answers_before_it_was_sent_all_is_heard(tmp_path: Path) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.write_eof()
        await over.wait()

    over = asyncio.Event()
    async with world(tmp_path) as here, server(refuse) as port:
        local(here, port)
        reader, writer = await here.connect()
        answering = asyncio.ensure_future(reader.readline())
        writer.write(get("web.example", port, "Content-Length: 50000000").replace(b"GET", b"POST"))
        with contextlib.suppress(ConnectionError):
            for _ in range(50):
                writer.write(bytes(1_000_000))
                await writer.drain()
        assert (await answering).startswith(b"HTTP/1.1 413 ")
        over.set()


# ---- what is not


@pytest.mark.parametrize(
    ("name", "port", "reason"),
    [
        ("evil.test", 443, "host-not-listed"),
        ("evilexample.org", 443, "host-not-listed"),
        ("example.org.evil.test", 443, "host-not-listed"),
        ("example.net", 443, "host-not-listed"),
        ("example.org", 22, "port-not-listed"),
        ("a.example.net", 8443, "port-not-listed"),
        ("93.184.215.14", 443, "host-not-listed"),
        ("[2606:4700::1111]", 443, "host-not-listed"),
        ("[::ffff:5db8:d70e]", 443, "host-not-listed"),
        ("169.254.169.254", 80, "host-not-listed"),
    ],
)
@scenario
async def test_what_the_policy_does_not_list_is_refused_and_not_even_resolved(
    name: str, port: int, reason: str, tmp_path: Path
) -> None:
    async with world(tmp_path) as here:
        here.allow("example.org", "*.example.net")
        for request in (connect(name, port), get(name, port)):
            answer = await here.ask(request)
            assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
            assert answer.endswith(f"[{reason}]\n".encode())
        assert here.denied == [reason, reason]
        denials = [each for each in here.events if isinstance(each, ev.ConnectionDenied)]
        assert len(denials) == len(here.events)
        assert {(each.host, each.port) for each in denials} == {(name.strip("[]"), port)}
        assert here.resolved == []


@pytest.mark.parametrize("name", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::1", "a..b", "%31.example"])
@scenario
async def test_addresses_that_only_some_read_as_such_are_refused(name: str, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.allow(mode="open")
        for request in (connect(name, 443), get(name, 80)):
            assert (await here.ask(request)).startswith(b"HTTP/1.1 400 ")
        assert here.denied == ["bad-request"] * 2
        assert here.resolved == []


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.17.0.1", "192.168.0.1", "169.254.169.254", "168.63.129.16", "0.0.0.0"),
        *("::1", "fd00::1", "fe80::1", "::ffff:127.0.0.1", "::ffff:1.1.1.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
    ],
)
@pytest.mark.parametrize("mode", ["allow", "open"])
@scenario
async def test_a_name_that_resolves_to_what_is_not_public_is_refused(mode: str, address: str, tmp_path: Path) -> None:
    seen: list[bytes] = []
    async with server(web(seen)) as port, world(tmp_path) as here:
        here.allow(*([f"rebound.example:{port}"] if mode == "allow" else []), mode=mode)
        here.names["rebound.example"] = [address]
        assert (await here.ask(get("rebound.example", port))).endswith(b"[not-public]\n")
        assert here.denied == ["not-public"]
        assert seen == []


@pytest.mark.parametrize("name", ["127.0.0.1", "[::1]", "10.0.0.1", "169.254.169.254", "[::ffff:127.0.0.1]"])
@scenario
async def test_naming_a_private_address_in_a_policy_is_no_grant(name: str, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.allow(name)
        assert (await here.ask(get(name, 80))).endswith(b"[not-public]\n")


@scenario
async def test_a_private_grant_does_not_cover_what_nobody_may_reach(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.allow(private=("db.internal:80",))
        for address in ("169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254"):
            here.names["db.internal"] = [address]
            assert (await here.ask(get("db.internal", 80))).endswith(b"[not-public]\n")


@scenario
async def test_a_name_is_resolved_once_and_its_private_addresses_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def refuse(host: str, port: int, **options: object) -> None:
        tried.append(host)
        raise ConnectionRefusedError

    async with world(tmp_path) as here:
        monkeypatch.setattr(asyncio, "open_connection", refuse)
        here.allow("rebound.example")
        here.names["rebound.example"] = ["127.0.0.1", "93.184.215.14", "10.0.0.1", "::1", "2606:4700::1111"]
        assert (await here.ask(get("rebound.example", 80))).endswith(b"[unreachable]\n")
        assert tried == ["93.184.215.14", "2606:4700::1111"]
        assert here.resolved == ["rebound.example"]


@scenario
async def test_a_second_answer_of_the_resolver_changes_nothing(tmp_path: Path) -> None:
    """The name means one server when it is looked up, and another as soon as that has been done."""
    first: list[bytes] = []
    async with world(tmp_path) as here, server(web(first, b"first")) as port:
        local(here, port)
        resolve = here.resolve

        async def rebinding(name: str) -> list[Address]:
            found = await resolve(name)
            here.names[name] = ["127.0.0.2"]
            return found

        here.proxy._resolve = rebinding
        assert (await here.ask(get("web.example", port))).endswith(b"first")
        assert here.resolved == ["web.example"]
        assert here.of(ev.ConnectionAllowed)[0].address == "127.0.0.1"


@scenario
async def test_a_name_without_addresses_and_a_server_that_is_away_are_told_apart(tmp_path: Path) -> None:
    async with server(web([])) as port, world(tmp_path) as here:
        here.allow("gone.example")
        assert (await here.ask(get("gone.example", 80))).startswith(b"HTTP/1.1 502 ")
    async with world(tmp_path / "..") as here:
        local(here, port)
        assert (await here.ask(get("web.example", port))).endswith(b"[unreachable]\n")
        assert here.denied == ["unreachable"]


@pytest.mark.parametrize(
    "first",
    [hello("evil.test"), hello("web.example.evil.test"), hello(None), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\0\1\1"],
    ids=["another", "suffix", "none", "plain", "cut off"],
)
@scenario
async def test_a_tunnel_to_the_web_for_another_name_or_none_ends_before_anything_passes(
    first: bytes, tmp_path: Path
) -> None:
    heard: list[bytes] = []
    async with server(keeping(heard)) as port, world(tmp_path, web_ports=(port,)) as here:
        local(here, port)
        reader, writer = await here.tunnel("web.example", port)
        writer.write(first)
        writer.write_eof()
        assert await reader.read(-1) == b""
        await here.until(lambda: here.denied)
        assert here.denied == ["name-mismatch"]
        assert here.of(ev.ConnectionAllowed) == []
        assert b"".join(heard) == b""


@scenario
async def test_a_tunnel_that_says_nothing_does_not_wait_for_ever(tmp_path: Path) -> None:
    async with server(keeping([])) as port, world(tmp_path, web_ports=(port,), head_seconds=2) as here:
        local(here, port)
        reader, _ = await here.tunnel("web.example", port)
        assert await reader.read(-1) == b""
        assert here.denied == ["too-slow"]


@scenario
async def test_tls_for_another_name_is_cut_at_other_ports_too(tmp_path: Path) -> None:
    heard: list[bytes] = []
    async with server(keeping(heard, b"first")) as port, world(tmp_path) as here:
        local(here, port)
        reader, writer = await here.tunnel("web.example", port)
        assert await reader.readexactly(5) == b"first"
        data = hello("evil.test")
        writer.write(data[:100])
        await asyncio.sleep(0.05)
        writer.write(data[100:])
        with contextlib.suppress(ConnectionError):
            assert await reader.read(-1) == b""
        await here.until(lambda: here.of(ev.ConnectionClosed))
        assert here.of(ev.ConnectionClosed)[0].reason == "name-mismatch"
        assert heard == [b""]


@scenario
async def test_an_address_that_is_named_needs_no_name_in_tls(tmp_path: Path) -> None:
    heard: list[bytes] = []
    async with server(keeping(heard)) as port, world(tmp_path, web_ports=(port,)) as here:
        here.allow(private=(f"127.0.0.1:{port}",))
        _, writer = await here.tunnel("127.0.0.1", port)
        writer.write(hello(None))
        await here.until(lambda: heard and len(heard[0]) > 100)
        assert here.denied == []
        assert here.resolved == []


# ---- hostile requests


def trickled(path: Path) -> bytes:
    """All that the proxy answers to a head that never ends. Of asyncio's streams, a write that comes after the proxy
    has hung up would take the answer away."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(ConnectionResetError):
        client.settimeout(60)
        client.connect(str(path))
        client.sendall(b"GET http://example.org/ HTTP/1.1\r\n")
        with contextlib.suppress(BrokenPipeError):
            while not select.select([client], [], [], 0.02)[0]:
                client.sendall(b"X: a\r\n")
        while data := client.recv(4096):
            answer += data
    return answer


@scenario
async def test_a_head_that_never_ends_is_given_up(tmp_path: Path) -> None:
    async with world(tmp_path, head_seconds=0.3) as here:
        assert (await asyncio.to_thread(trickled, here.path)).startswith(b"HTTP/1.1 408 ")
        assert here.denied == ["too-slow"]


@scenario
async def test_a_head_that_is_too_long_is_refused_before_it_has_come(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        answer = await here.ask(b"GET http://example.org/ HTTP/1.1\r\nX: " + b"a" * (MAX_HEAD_BYTES + 1))
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert (await here.ask(b"GET http://example.org/ HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n")).startswith(
            b"HTTP/1.1 400 "
        )
        assert here.denied == ["head-too-long", "bad-request"]


@pytest.mark.parametrize(
    ("headers", "body", "passed"),
    [
        (["Content-Length: 5"], b"12345", b"12345"),
        (
            ["Transfer-Encoding: chunked"],
            b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: 1\r\n\r\n",
            b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        ),
        ([], b"", b""),
    ],
)
@scenario
async def test_a_second_request_behind_the_first_goes_nowhere(
    headers: list[str], body: bytes, passed: bytes, tmp_path: Path
) -> None:
    heard: list[bytes] = []
    smuggled = b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\nGET / HTTP/1.1\r\nHost: evil.test\r\n\r\n"
    async with server(keeping(heard, b"HTTP/1.1 200 OK\r\n\r\n")) as port, world(tmp_path, idle_seconds=0.5) as here:
        local(here, port)
        await here.ask(get("web.example", port, *headers) + body + smuggled)
        await here.until(lambda: here.of(ev.ConnectionClosed))
        (request,) = heard
        assert request.partition(b"\r\n\r\n")[2] == passed
        assert b"evil" not in request


@pytest.mark.parametrize(
    "body",
    [
        b"5\r\nabc",
        b"x\r\nabc\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"-1\r\n",
        b"f" * 16 + b"\r\n",
        b"3\nabc\n",
        b"3\r\nabcXX0\r\n\r\n",
        b"1" * 40_000,
    ],
    ids=["cut off", "no size", "longer", "negative", "huge", "bare line feed", "no line end", "endless"],
)
@scenario
async def test_a_chunked_body_that_is_not_one_ends_the_connection(body: bytes, tmp_path: Path) -> None:
    heard: list[bytes] = []
    async with server(keeping(heard)) as port, world(tmp_path) as here:
        local(here, port)
        reader, writer = await here.connect()
        writer.write(get("web.example", port, "Transfer-Encoding: chunked") + body)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            assert await reader.read(-1) == b""
        await here.until(lambda: here.of(ev.ConnectionClosed))
        assert here.of(ev.ConnectionClosed)[0].reason == "broken"
        assert not heard[0].endswith(b"\r\n0\r\n\r\n")


@scenario
async def test_a_task_has_so_many_connections_at_once_and_others_when_they_have_ended(tmp_path: Path) -> None:
    async with server(keeping([])) as port, world(tmp_path) as here:
        local(here, port)
        held = [await here.tunnel("web.example", port) for _ in range(MOST_CONNECTIONS)]
        assert (await here.ask(get("web.example", port))).startswith(b"HTTP/1.1 503 ")
        assert here.denied == ["too-many"]
        for _, writer in held:
            writer.close()
        await here.until(lambda: len(here.of(ev.ConnectionClosed)) == MOST_CONNECTIONS)
        await here.tunnel("web.example", port)


# ---- changes, ends


@pytest.mark.parametrize("ends", [True, False])
@scenario
async def test_an_answer_without_a_length_that_is_cut_by_a_change_of_policy_does_not_look_complete(
    ends: bool, tmp_path: Path
) -> None:
    goes_on = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nhalf")
        await writer.drain()
        await goes_on.wait()

    async with server(serve) as port, world(tmp_path) as here:
        local(here, port)
        reader, writer = await here.connect()
        writer.write(get("web.example", port))
        answer = await reader.readuntil(b"\r\nhalf\r\n")
        if not ends:
            here.policy = NetworkPolicy()
            here.proxy.review()
        else:
            goes_on.set()
        with contextlib.suppress(ConnectionError):
            answer += await reader.read(-1)
        assert answer.endswith(b"\r\nhalf\r\n0\r\n\r\n" if ends else b"\r\nhalf\r\n")
        await here.until(lambda: here.of(ev.ConnectionClosed))
        (closed,) = here.of(ev.ConnectionClosed)
        assert (closed.received, closed.reason) == (23, "ended" if ends else "policy-changed")
        goes_on.set()


@scenario
async def test_a_connection_ends_when_the_policy_does_not_allow_it_any_more(tmp_path: Path) -> None:
    async with server(keeping([])) as port, world(tmp_path) as here:
        here.names |= {"web.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]}
        here.allow(private=(f"web.example:{port}", f"other.example:{port}"))
        cut, _ = await here.tunnel("web.example", port)
        stays, writer = await here.tunnel("other.example", port)
        await here.until(lambda: len(here.of(ev.ConnectionAllowed)) == 2)
        here.allow(private=(f"other.example:{port}",))
        here.proxy.review()
        with contextlib.suppress(ConnectionError):
            assert await cut.read(-1) == b""
        await here.until(lambda: here.of(ev.ConnectionClosed))
        assert [(each.host, each.reason) for each in here.of(ev.ConnectionClosed)] == [
            ("web.example", "policy-changed")
        ]
        writer.write_eof()
        assert await stays.read(-1) == b""
        here.policy = NetworkPolicy()
        assert (await here.ask(get("other.example", port))).endswith(b"[no-network]\n")


@scenario
async def test_silence_ends_a_connection_and_a_word_puts_that_off(tmp_path: Path) -> None:
    async with server(keeping([])) as port, world(tmp_path, idle_seconds=2) as here:
        local(here, port)
        silent, busy = await here.tunnel("web.example", port), await here.tunnel("web.example", port)
        reading = asyncio.ensure_future(silent[0].read(-1))
        while not here.of(ev.ConnectionClosed):
            busy[1].write(b"x")
            await asyncio.sleep(0.02)
        (closed,) = here.of(ev.ConnectionClosed)
        assert (closed.sent, closed.reason) == (0, "idle")
        with contextlib.suppress(ConnectionError):
            assert await reading == b""


@scenario
async def test_a_proxy_that_ends_puts_on_record_what_it_cuts(tmp_path: Path) -> None:
    heard: list[bytes] = []
    async with server(keeping(heard)) as port:
        async with world(tmp_path) as here:
            local(here, port)
            _, writer = await here.tunnel("web.example", port)
            writer.write(b"12345")
            await here.until(lambda: heard == [b"12345"])
        (closed,) = here.of(ev.ConnectionClosed)
        assert (closed.sent, closed.reason) == (5, "stopped")


# ---- the record


@scenario
async def test_a_flood_is_recorded_in_so_many_events_and_one_that_counts_the_rest(tmp_path: Path) -> None:
    async with world(tmp_path, most=5) as here:
        here.allow("example.org")
        for number in range(50):
            await here.ask(connect(f"h{number % 2}.evil.test", 443))
        assert len(here.events) == 5
    assert len(here.events) == 6
    summary = here.events[-1]
    assert isinstance(summary, ev.ConnectionsSummarised)
    assert (summary.allowed, summary.denied) == (0, 45)
    assert set(summary.hosts) == {"h0.evil.test:443", "h1.evil.test:443"}


@scenario
async def test_what_is_only_counted_counts_its_bytes_too(tmp_path: Path) -> None:
    seen: list[bytes] = []
    async with world(tmp_path, most=1) as here, server(web(seen)) as port:
        local(here, port)
        answers = [await here.ask(get("web.example", port)) for _ in range(4)]
        await here.until(lambda: here.of(ev.ConnectionClosed))
    (summary,) = here.of(ev.ConnectionsSummarised)
    assert (summary.allowed, summary.denied) == (3, 0)
    assert (summary.sent, summary.received) == (sum(map(len, seen[1:])), sum(map(len, answers[1:])))


@scenario
async def test_a_new_window_begins_when_the_old_has_passed(tmp_path: Path) -> None:
    async with world(tmp_path, most=1) as here:
        here.record._window_seconds = 2
        for _ in range(3):
            await here.ask(connect("evil.test", 443))
        await here.until(lambda: here.of(ev.ConnectionsSummarised))
        await here.ask(connect("evil.test", 443))
        assert here.denied == ["no-network"] * 2


@scenario
async def test_a_keep_that_cannot_be_read_lets_nothing_through(tmp_path: Path) -> None:
    seen: list[bytes] = []
    async with world(tmp_path) as here, server(web(seen)) as port:
        local(here, port)

        def unreadable(task: str, host: str, port: int) -> Ruling:
            raise SandkeepError("the projections are gone")

        here.proxy._rule = unreadable
        assert await here.ask(get("web.example", port)) == b""
        assert seen == []
