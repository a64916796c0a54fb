from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandkeep.sandboxes.host import host
from sandkeep.sandboxes.http_request import MAX_HEAD_BYTES, MAX_HEADERS, BadRequest, Request, parse


def head(line: str, *headers: str) -> bytes:
    return "".join(f"{each}\r\n" for each in (line, *headers, "")).encode("latin-1")


def get(*headers: str, target: str = "http://example.org/", version: str = "1.1") -> bytes:
    return head(f"GET {target} HTTP/{version}", *headers)


def test_a_plain_request_goes_on_without_what_concerns_this_connection() -> None:
    found = parse(
        head(
            "POST http://Example.org:8080?a=b HTTP/1.1",
            "Host: EXAMPLE.org:8080",
            "Proxy-Connection: keep-alive",
            "Connection: keep-alive, X-Secret, Content-Length",
            "Keep-Alive: 300",
            "Proxy-Authorization: Basic eDp5",
            "Upgrade: h2c",
            "X-Secret: 1",
            "Accept:*/*",
            "Content-Length: 12",
        )
    )
    assert found == Request(
        host="example.org",
        port=8080,
        tunnel=False,
        head=b"POST /?a=b HTTP/1.1\r\nHost: example.org:8080\r\nAccept: */*\r\nContent-Length: 12\r\n"
        b"Connection: close\r\n\r\n",
        body=12,
    )


def test_a_tunnel_is_asked_for_with_host_and_port() -> None:
    assert parse(head("CONNECT Example.org:443 HTTP/1.1", "Host: example.org:443")) == Request("example.org", 443, True)
    assert parse(head("CONNECT [2606:4700::1]:443 HTTP/1.1", "Host: [2606:4700:0::1]")).host == "2606:4700::1"
    assert parse(head("CONNECT example.org:443 HTTP/1.0")).port == 443


def test_an_old_request_needs_no_host_and_stays_old() -> None:
    assert parse(get(version="1.0")).head.startswith(b"GET / HTTP/1.0\r\nHost: example.org\r\n")


def test_a_chunked_body_is_known_as_such() -> None:
    assert parse(get("Host: example.org", "Transfer-Encoding: Chunked")).body == "chunked"


HOST = "Host: example.org"
CHUNKED = "Transfer-Encoding: chunked"


def to(*targets: str) -> list[bytes]:
    return [get(HOST, target=each) for each in targets]


def connect(*targets: str) -> list[bytes]:
    return [head(f"CONNECT {each} HTTP/1.1", HOST) for each in targets]


WRONG = {
    "request line": [
        *(b"", b"\r\n\r\n", b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n", b"\x16\x03\x01\x02\0\r\n\r\n"),
        *(get(HOST, version="2.0"), get(HOST, version="1.1 "), b" " + get(HOST), get(HOST, target="http://a b/")),
        *(get(HOST).replace(b"\r\n", b"\n"), get(HOST)[:-1]),
    ],
    "asked for http://": to("/", "*", "https://example.org/", "ftp://example.org/", "http://", "http:///x")
    + to("http://example.org/#x", "http://example.org\\@evil.test/", "http://example.org@evil.test/"),
    "malformed": [
        *(get(HOST, "X: a\nY: b"), get(HOST, "X: a\rY: b"), get(HOST, "X: a\0b"), get(HOST, "", "X: a")),
        *(get(HOST, " folded"), get(HOST, "X : a"), get(HOST, ": a"), get(HOST, "no colon")),
    ],
    "host once": [get(), get(HOST, HOST), get(HOST, "hOST: example.org")],
    "names no host": [
        *to("http://example.org:/", "http://example.org:99999/", "http://example.org:0/", "http://[::1/"),
        *to("http://2130706433/", "http://0x7f.1/", "http://127.1/", "http://0177.0.0.1/", "http://a..b/"),
        *connect("example.org", "example.org:0", "http://example.org:443", "u@example.org:443", "example.org:443/"),
        *connect(":443", "2130706433:443", "[127.0.0.1]:443", "[fe80::1%25lo]:443"),
        *(get("Host: example.org, evil.test"), get("Host:"), get("Host: u@example.org")),
    ],
    "in its address": [get("Host: evil.test"), get("Host: example.org:81"), get("Host: www.example.org")],
    "be connected to": [head("CONNECT example.org:443 HTTP/1.1", "Host: evil.test:443")],
    "more than one way": [
        *(get(HOST, "Content-Length: 1", "Content-Length: 1"), get(HOST, "Content-Length: 1", CHUNKED)),
        *(get(HOST, CHUNKED, CHUNKED), get(CHUNKED, version="1.0"), get(HOST, "Transfer-Encoding: gzip, chunked")),
        *(get(HOST, f"Transfer-Encoding: {each}") for each in ("chunked, identity", "xchunked", "", "chunked;x")),
        *(get(HOST, f"Content-Length: {each}") for each in ("+1", "-1", "1,1", "0x1", "1 1", "", "9" * 16)),
    ],
    "has no body": [
        head("CONNECT example.org:443 HTTP/1.1", HOST, "Content-Length: 0"),
        head("CONNECT example.org:443 HTTP/1.1", HOST, CHUNKED),
    ],
    "bytes": [get(HOST, "X: " + "a" * MAX_HEAD_BYTES)],
    "headers": [get(HOST, *["X: a"] * MAX_HEADERS)],
}


@pytest.mark.parametrize(("words", "data"), [(words, data) for words, all_ in WRONG.items() for data in all_])
def test_what_could_be_read_in_two_ways_is_refused(words: str, data: bytes) -> None:
    with pytest.raises(BadRequest, match=words):
        parse(data)


NAME = st.sampled_from(["Host", "host", "Content-Length", "Transfer-Encoding", "Connection", "X"])
VALUE = st.sampled_from(
    ["example.org", "evil.test", "0", "5", "chunked", "close", "host", "x\r\nHost: evil.test", "\t", ""]
)
LINE = st.builds("{} {} HTTP/1.{}".format, st.sampled_from(["GET", "CONNECT", "POST", "G\r\nT"]), st.sampled_from(
    ["http://example.org/", "http://EXAMPLE.org:80", "example.org:443", "http://a@example.org/", "/", "http://evil.test/"]
), st.sampled_from("012"))  # fmt: skip
NEARLY = st.builds(
    lambda line, headers: head(line, *(f"{name}:{value}" for name, value in headers)),
    LINE,
    st.lists(st.tuples(NAME, VALUE), max_size=4),
)


@given(st.binary(max_size=200) | NEARLY | st.tuples(NEARLY, st.binary(max_size=8), st.integers(0, 80)).map(
    lambda parts: parts[0][: parts[2]] + parts[1] + parts[0][parts[2] :]
))  # fmt: skip
@example(get("Host: example.org"))
def test_whatever_comes_is_refused_or_goes_on_as_one_request_for_the_host_that_was_judged(data: bytes) -> None:
    try:
        found = parse(data)
    except BadRequest:
        return
    assert host(found.host) == found.host
    assert 1 <= found.port <= 65535
    if found.tunnel:
        assert (found.head, found.body) == (b"", 0)
        return
    lines = found.head.split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    assert all(lines[:-2])
    assert not any(byte in line for line in lines for byte in b"\r\n\0")
    assert re.fullmatch(rb"[A-Z]+ /[\x21-\x7e]* HTTP/1\.[01]", lines[0])
    names = [line.split(b":")[0].lower() for line in lines[1:-2]]
    assert names.count(b"host") == names.count(b"connection") == 1
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    assert (found.body != 0) <= (names.count(b"content-length") + names.count(b"transfer-encoding") == 1)
    assert lines[1].decode().removeprefix("Host: ").removesuffix(f":{found.port}") in (found.host, f"[{found.host}]")
    # What goes on is read the same by whoever reads it next.
    again = parse(found.head.replace(b" /", b" http://" + lines[1].removeprefix(b"Host: ") + b"/", 1))
    assert again == found
