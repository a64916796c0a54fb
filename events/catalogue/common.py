"""What events are made of: intents and their outcomes, and the values in them."""

from __future__ import annotations

import msgspec

from sandkeep.events.schema import Event

INLINE_BYTES = 16 * 1024
"""Output up to this size stands in the event itself; more is a blob."""


class Output(msgspec.Struct, frozen=True):
    """A captured stream: its bytes in `data`, or under the digest `blob` when there are more than `INLINE_BYTES`."""

    size: int
    data: bytes | None = None
    blob: str | None = None
    truncated: bool = False


class Limits(msgspec.Struct, frozen=True):
    """What a sandbox may use at most. Of those that have a default, 0 is no limit; but for swap, which is none then.

    `disk_bytes` is of its workspace, `output_bytes` of each stream of a command, `command_ns` the time of a command.
    """

    memory_bytes: int
    nano_cpus: int
    pids: int
    tmp_bytes: int
    swap_bytes: int = 0
    open_files: int = 0
    disk_bytes: int = 0
    output_bytes: int = 0
    command_ns: int = 0


class Span(msgspec.Struct, frozen=True):
    """The positions from `first` to `last`."""

    first: int
    last: int


class Intent(Event, frozen=True):
    """Something is about to be done outside the log; `intent` is its id."""

    intent: str


class Outcome(Event, frozen=True):
    """What came of the intent with this id."""

    intent: str


class Failure(Outcome, frozen=True):
    """The intent failed: an error's stable code, and its message."""

    code: str
    message: str
