"""What the command line shows people of commands."""

from __future__ import annotations

from collections.abc import Mapping

from sandkeep.sandboxes import documents


def executed(done: documents.Ran | documents.Process, asked: Mapping[str, object]) -> int | None:
    """The id of a command in the background; of another, whose streams were shown as they came, its exit status."""
    if isinstance(done, documents.Ran):
        return done.exit_code
    print(done.command)
    return None
