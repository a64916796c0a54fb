"""The head of an HTTP request to the egress proxy (RFC 9112), and the head that goes on to the server.

It is read strictly, since a request that two programs read in two ways is how one is smuggled past the other: lines end
in CR LF, nothing is folded, a body's length is told once and in one way, and the host is the same wherever it is named.
What goes on is written anew, without what concerns this connection only, and says that the connection ends with it.
Pure.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from sandkeep.sandboxes.host import NotAHost, host

MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 100

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_LINE = re.compile(rb"(" + _TOKEN + rb"{1,32}) ([\x21-\x7e]+) HTTP/1\.([01])")
_HEADER = re.compile(rb"(" + _TOKEN + rb"+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_ABSOLUTE = re.compile(r"http://([^/?#@\\]+)(/[^#]*|\?[^#]*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]@/?#\\]+)(?::([0-9]{1,5}))?")
_LENGTH = re.compile(r"[0-9]{1,15}")

_THIS_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "te", "trailer",
        "upgrade", "http2-settings", "host"
    }
)  # fmt: skip
_FRAMING = ("content-length", "transfer-encoding")


class BadRequest(ValueError):
    """It is no request that may go on; the words say why."""


class Request(msgspec.Struct, frozen=True):
    """A request: for a tunnel (CONNECT), or with the `head` that goes to the server and the length of the body."""

    host: str
    port: int
    tunnel: bool
    head: bytes = b""
    body: int | Literal["chunked"] = 0


def parse(data: bytes) -> Request:
    """The request whose head, up to and with the empty line, is `data`. Raises `BadRequest`."""
    if len(data) > MAX_HEAD_BYTES:
        raise BadRequest(f"the head has more than {MAX_HEAD_BYTES} bytes")
    first, *lines = data.removesuffix(b"\r\n\r\n").split(b"\r\n")
    line = _LINE.fullmatch(first)
    if line is None or not data.endswith(b"\r\n\r\n"):
        raise BadRequest("it does not begin with a request line of HTTP/1.0 or 1.1")
    method, target, minor = line[1].decode(), line[2].decode(), line[3]
    headers = _headers(lines)
    length = _body(headers, minor == b"1")
    named = [value for name, value in headers if name.lower() == "host"]
    if len(named) > 1 or (minor == b"1" and not named):
        raise BadRequest("it has to name its host once")
    if method == "CONNECT":
        where = _authority(target, None)
        if length != 0 or any(name.lower() in _FRAMING for name, _ in headers):
            raise BadRequest("a request for a tunnel has no body")
        # Many clients leave the port out here, or put that of the scheme.
        if named and _authority(named[0], where[1])[0] != where[0]:
            raise BadRequest("its host is not the one that it asks to be connected to")
        return Request(*where, tunnel=True)
    found = _ABSOLUTE.fullmatch(target)
    if found is None:
        raise BadRequest("a proxy is asked for http:// and a host, or to CONNECT to one")
    where = _authority(found[1], 80)
    if named and _authority(named[0], 80) != where:
        raise BadRequest("its host is not the one in its address")
    path = found[2] or "/"
    start = f"{method} {'/' * path.startswith('?')}{path} HTTP/1.{minor.decode()}\r\nHost: {_shown(*where)}\r\n"
    return Request(*where, tunnel=False, head=start.encode() + _passed_on(headers), body=length)


def _headers(lines: list[bytes]) -> list[tuple[str, str]]:
    if len(lines) > MAX_HEADERS:
        raise BadRequest(f"it has more than {MAX_HEADERS} headers")
    headers = []
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise BadRequest("one of its headers is malformed")
        headers.append((found[1].decode(), found[2].decode("latin-1")))
    return headers


def _body(headers: list[tuple[str, str]], recent: bool) -> int | Literal["chunked"]:
    """How long the body is: told once, in one way (RFC 9112, 6.1 and 6.3)."""
    told = [(name.lower(), value) for name, value in headers if name.lower() in _FRAMING]
    match told:
        case []:
            return 0
        case [("content-length", value)] if _LENGTH.fullmatch(value):
            return int(value)
        case [("transfer-encoding", value)] if value.lower() == "chunked" and recent:
            return "chunked"
    raise BadRequest("the length of its body is told in more than one way, or in none that is known")


def _passed_on(headers: list[tuple[str, str]]) -> bytes:
    dropped = set(_THIS_HOP)
    for name, value in headers:
        if name.lower() == "connection":
            dropped.update(each.strip().lower() for each in value.split(","))
    dropped.difference_update(_FRAMING)
    kept = [f"{name}: {value}\r\n" for name, value in headers if name.lower() not in dropped]
    return "".join((*kept, "Connection: close\r\n\r\n")).encode("latin-1")


def _authority(text: str, port: int | None) -> tuple[str, int]:
    found = _AUTHORITY.fullmatch(text)
    number = port if found is None or found[2] is None else int(found[2])
    if found is None or number is None or not 1 <= number <= 65535:
        raise BadRequest("it names no host and port")
    try:
        return host(found[1]), number
    except NotAHost as error:
        raise BadRequest(f"it names no host: {error}") from error


def _shown(name: str, port: int) -> str:
    name = f"[{name}]" if ":" in name else name
    return name if port == 80 else f"{name}:{port}"
