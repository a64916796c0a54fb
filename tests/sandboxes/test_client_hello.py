from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.sandboxes.client_hello import MAX_BYTES, Incomplete, NotTls, server_name


def hello(name: str | None) -> bytes:
    """What a real client sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


def records(message: bytes, size: int) -> bytes:
    """A handshake message in records of `size` bytes."""
    parts = [message[place : place + size] for place in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)


def made(extensions: bytes) -> bytes:
    """A hello with these extensions."""
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\2\x13\x01" + b"\1\0" + len(extensions).to_bytes(2, "big") + extensions
    return records(b"\1" + len(body).to_bytes(3, "big") + body, 1 << 14)


def named(*names: bytes, kind: int = 0) -> bytes:
    """The extension that names servers."""
    listed = b"".join(bytes([kind]) + len(name).to_bytes(2, "big") + name for name in names)
    return b"\0\0" + (len(listed) + 2).to_bytes(2, "big") + len(listed).to_bytes(2, "big") + listed


HELLO = hello("example.org")


def test_the_name_of_a_real_hello_is_found_and_its_absence() -> None:
    assert server_name(HELLO) == "example.org"
    assert server_name(HELLO + b"\x17\x03\x03 early data") == "example.org"
    assert server_name(hello(None)) is None
    assert server_name(made(named(b"a.example"))) == "a.example"


@given(st.integers(0, len(HELLO) - 1))
def test_any_beginning_of_a_hello_asks_for_more(size: int) -> None:
    with pytest.raises(Incomplete):
        server_name(HELLO[:size])


@given(st.integers(1, 600))
def test_a_hello_in_any_number_of_records_is_the_same(size: int) -> None:
    assert server_name(records(HELLO[5:], size)) == "example.org"


@pytest.mark.parametrize(
    "data",
    [
        *(b"GET / HTTP/1.1\r\n", b"SSH-2.0-OpenSSH", b"\x16\x02", b"\x15\x03\x01\0\2\2\x28", b"\x80\x2e\1\3\1"),
        b"\x16\x03\x01\0\0",
        b"\x16\x03\x01\xff\xff",
        records(b"\2" + HELLO[6:], 1 << 14),
        records(HELLO[5:], 100)[:105] + b"\x17\x03\x01\0\1x",
        made(named(b"a.example", b"b.example")),
        made(named(b"a.example") + named(b"b.example")),
        made(named(b"a.example", kind=1)),
        made(named("ä.example".encode())),
        made(b"\0\0\0\5\0\xff\0\0\1"),
        made(b"\0\0\xff\xff"),
        records(b"\1\xff\xff\xff" + bytes(MAX_BYTES), 1 << 14),
    ],
)
def test_what_is_no_hello_or_names_no_single_server_is_refused(data: bytes) -> None:
    with pytest.raises(NotTls):
        server_name(data)


@given(st.integers(0, len(HELLO) - 1), st.integers(0, 255))
def test_a_damaged_hello_never_ends_in_anything_else(place: int, byte: int) -> None:
    try:
        found = server_name(HELLO[:place] + bytes([byte]) + HELLO[place + 1 :])
    except (Incomplete, NotTls):
        return
    assert found is None or found.isascii()


@given(st.binary(max_size=300))
def test_nor_does_anything_at_all(data: bytes) -> None:
    for start in (b"", b"\x16\x03\x01", b"\x16\x03\x01\0\xff\1\0\0\xfb"):
        try:
            server_name(start + data)
        except (Incomplete, NotTls):
            continue
