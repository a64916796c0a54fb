"""The names that callers give a log: of streams, of who acts, of what is repeated.

Other kinds of streams may be in a log that a newer version wrote. They are read with the rest, and kept; they are only
not written, or asked for by name, by a version that does not know what they are of.
"""

from __future__ import annotations

import re

from sandkeep.events.errors import BadInput

STREAM_KINDS = ("task", "lock", "image", "subscription", "cache")
"""What there are streams of, each named `kind/id`. Beside them there is one stream named `keep`."""

_STREAM = re.compile(rf"keep|(?:{'|'.join(STREAM_KINDS)})/[A-Za-z0-9][A-Za-z0-9._:-]{{0,127}}")
_LONGEST = 200


def check_stream(stream: str) -> str:
    """The name of a stream. Raises `BadInput` if it is malformed or of a kind that this version does not know."""
    if not _STREAM.fullmatch(stream):
        kinds = ", ".join(f"'{kind}/ID'" for kind in STREAM_KINDS)
        raise BadInput(
            f"{stream[:_LONGEST]!r} is no stream name; use 'keep' or one of {kinds}; an ID has up to 128 letters, "
            "digits and . _ : - and begins with a letter or a digit"
        )
    return stream


def check_actor(actor: str) -> str:
    """The name of who acts. Raises `BadInput` if it cannot be stored and shown."""
    if not (actor.isprintable() and 1 <= len(actor) <= _LONGEST):
        raise BadInput(f"the actor's name must have 1 to {_LONGEST} printable characters")
    return actor


def check_key(key: str) -> str:
    """An idempotency key. Raises `BadInput` if it cannot be one."""
    if not (key.isascii() and 1 <= len(key) <= _LONGEST):
        raise BadInput(f"an idempotency key must have 1 to {_LONGEST} ASCII characters")
    return key
