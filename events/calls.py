"""A call that may come twice: what is stored in it has keys made from the call's own.

Within `call(key)` each commit of this thread that names no idempotency key is given the next of `key/1`, `key/2`...; so
whoever gets the call again, from one that has not heard what came of it, finds in the log how far it had come, by
`made`. What a call stores is not repeated by itself: its repetition may take another way, and looks first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandkeep.events.codec import Record
    from sandkeep.events.log import EventLog


class _Call:
    def __init__(self, key: str) -> None:
        self.key = key
        self.count = 0


_current: ContextVar[_Call | None] = ContextVar("call", default=None)


@contextlib.contextmanager
def call(key: str) -> Iterator[None]:
    """Give keys made from `key` to what this thread stores until the end of the block."""
    token = _current.set(_Call(key))
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def keyed(key: str | None) -> Iterator[str | None]:
    """The key of a commit: its own, if it has one, or the call's next. One that fails has used none."""
    current = _current.get()
    if key is not None or current is None:
        yield key
        return
    yield f"{current.key}/{current.count + 1}"
    current.count += 1


def made(log: EventLog[object], key: str, after: int) -> list[Record]:
    """What a call with this key has stored behind position `after`, in order."""
    return [record for record in log.read(after) if record.key is not None and record.key.startswith(f"{key}/")]
