"""What goes to standard output as it is: documents for machines, and what commands write. See `render` for the rest.

Importing it loads nothing, since every verb needs it, also the quickest.
"""

from __future__ import annotations

import sys
from typing import BinaryIO


def print_json(document: object) -> None:
    """One JSON document, on one line of standard output."""
    import msgspec

    write(sys.stdout.buffer, msgspec.json.encode(document) + b"\n")


def write(stream: BinaryIO, data: bytes) -> None:
    """Write to a stream at once. Raises `BrokenPipeError` without a number: typer would end us for one with it."""
    try:
        stream.write(data)
        stream.flush()
    except BrokenPipeError as error:
        raise BrokenPipeError("nobody reads any more") from error
