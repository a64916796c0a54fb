"""Text that is exact for machines and harmless for people: times, and what comes from anywhere."""

from __future__ import annotations

import datetime
import sys
from typing import BinaryIO

import msgspec


def moment(time_ns: int) -> str:
    """A time as RFC 3339 has it, in UTC, to the microsecond."""
    whole = datetime.datetime.fromtimestamp(time_ns // 10**9, datetime.UTC)
    return whole.replace(microsecond=time_ns // 1000 % 10**6).isoformat().replace("+00:00", "Z")


def escaped(text: str) -> str:
    """Foreign text with every character that is none to see as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(document: object) -> None:
    """One JSON document, on one line of standard output."""
    write(sys.stdout.buffer, msgspec.json.encode(document) + b"\n")


def write(stream: BinaryIO, data: bytes) -> None:
    """Write to a stream at once. Raises `BrokenPipeError` without a number: typer would end us for one with it."""
    try:
        stream.write(data)
        stream.flush()
    except BrokenPipeError as error:
        raise BrokenPipeError("nobody reads any more") from error


def quiet(message: str) -> None:
    """The progress callback of those who want none."""
