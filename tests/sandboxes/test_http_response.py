"""The end of an answer can be told from a cut, and nothing else about it changes."""

from __future__ import annotations

import http.client
import io
import socket
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.sandboxes.http_response import MAX_HEAD_BYTES, Answer

GET = b"GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n"
OPEN = b"HTTP/1.0 200 Fine\r\nServer: old\r\nConnection: close\r\n\r\n"
PIECES = st.lists(st.integers(1, 40), max_size=30)


def passed(request: bytes, data: bytes, sizes: list[int], *, ends: bool = True) -> bytes:
    """What a client is given of `data`, when it comes in pieces of these sizes."""
    answer, out = Answer(request), b""
    for size in sizes:
        piece, data = data[:size], data[size:]
        out += answer.feed(piece)
    out += answer.feed(data)
    return out + answer.end() if ends else out


class _Socket:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def read(data: bytes) -> bytes:
    """The body that a client of the standard library makes of an answer."""
    answer = http.client.HTTPResponse(cast(socket.socket, _Socket(data)), method="GET")
    answer.begin()
    return answer.read()


@given(st.binary(max_size=300), PIECES)
def test_a_body_without_a_length_arrives_whole_however_it_comes(body: bytes, sizes: list[int]) -> None:
    assert read(passed(GET, OPEN + body, sizes)) == body


@given(st.binary(max_size=300), PIECES)
def test_one_that_is_cut_is_seen_to_be(body: bytes, sizes: list[int]) -> None:
    with pytest.raises(http.client.IncompleteRead):
        read(passed(GET, OPEN + body, sizes, ends=False))


def test_the_head_is_kept_and_says_how_the_body_comes() -> None:
    out = passed(GET, OPEN + b"body", [])
    head = b"HTTP/1.1 200 Fine\r\nServer: old\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert out == head + b"4\r\nbody\r\n0\r\n\r\n"


def test_what_comes_before_the_answer_passes_as_it_is() -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    out = passed(GET, early + OPEN + b"x", [3, 30, 5])
    assert out.startswith(early + b"HTTP/1.1 200 Fine")
    assert out.endswith(b"1\r\nx\r\n0\r\n\r\n")


UNCHANGED = {
    "a length": (GET, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"),
    "chunks": (GET, b"HTTP/1.1 200 OK\r\ntransfer-encoding : chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"),
    "no content": (GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
    "not modified": (GET, b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    "another protocol": (GET, b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x00\x01"),
    "an answer to HEAD": (GET.replace(b"GET", b"HEAD"), OPEN),
    "an old client": (GET.replace(b"/1.1", b"/1.0"), OPEN + b"body"),
    "no answer": (GET, b"SSH-2.0-x\r\n\r\n"),
    "no status": (GET, b"HTTP/1.1 OK\r\n\r\nx"),
    "bare line ends": (GET, b"HTTP/1.1 200 OK\nA: b\n\nbody"),
    "a head without end": (GET, b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * MAX_HEAD_BYTES),
    "half a head": (GET, b"HTTP/1.1 200 O"),
    "nothing": (GET, b""),
}


@pytest.mark.parametrize("case", UNCHANGED)
def test_all_else_passes_as_it_is(case: str) -> None:
    request, data = UNCHANGED[case]
    for sizes in ([], [1] * 30, [7] * 10):
        assert passed(request, data, sizes) == data


def test_what_cannot_be_an_answer_is_not_held_back() -> None:
    for data in (b"SS", b"HTTP/1.1 200 OK\nA: b\n\nbody", b"HTTP/1.1 200 OK\r\n" + b"x" * (MAX_HEAD_BYTES + 1)):
        assert Answer(GET).feed(data) == data


@given(st.binary(max_size=200), PIECES)
def test_whatever_a_server_sends_nothing_is_lost(data: bytes, sizes: list[int]) -> None:
    out = passed(GET, data, sizes)
    assert out == data or out.endswith(b"0\r\n\r\n")
