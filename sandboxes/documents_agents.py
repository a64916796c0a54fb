"""What verbs answer with that only agents ask for; see `documents`."""

from __future__ import annotations

import msgspec


class OutputPart(msgspec.Struct, frozen=True):
    """A part of what a command wrote: `bytes` of it, from `offset` on, as text in which what is not UTF-8 is replaced.
    There are `size` in all, so far if it still `runs`; `next` is where the next part begins, null at the end."""

    task: str
    command: str
    stream: str
    offset: int
    bytes: int
    size: int
    text: str
    runs: bool
    next: int | None
