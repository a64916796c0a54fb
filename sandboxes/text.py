"""Text that is exact for machines and harmless for people: times, and what comes from anywhere."""

from __future__ import annotations

import datetime


def moment(time_ns: int) -> str:
    """A time as RFC 3339 has it, in UTC, to the microsecond."""
    whole = datetime.datetime.fromtimestamp(time_ns // 10**9, datetime.UTC)
    return whole.replace(microsecond=time_ns // 1000 % 10**6).isoformat().replace("+00:00", "Z")


def escaped(text: str) -> str:
    """Foreign text with every character that is none to see as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quiet(message: str) -> None:
    """The progress callback of those who want none."""
