"""What the command line shows people of commands."""

from __future__ import annotations

from collections.abc import Mapping

from sandkeep.sandboxes import documents, documents_work, render


def executed(done: documents.Ran | documents.Process, asked: Mapping[str, object]) -> int | None:
    """The id of a command in the background; of another, whose streams were shown as they came, its exit status."""
    if isinstance(done, documents.Ran):
        return done.exit_code
    print(done.command)
    return None


def processes(found: list[documents.Process], asked: Mapping[str, object]) -> None:
    """The commands that run in the background, a line each."""
    for each in found:
        print(render.plain(f"{each.command}  {' '.join(each.argv)}"))


def shown_already(done: documents_work.Written, asked: Mapping[str, object]) -> None:
    """Nothing: what it wrote was shown as it was read."""


def waited(done: documents.Ran | None, asked: Mapping[str, object]) -> int:
    """Nothing but the exit status; that of a command that runs on is as if its time were up."""
    return 124 if done is None else done.exit_code


def stopped(done: documents.Ran, asked: Mapping[str, object]) -> None:
    """That a command was ended."""
    print(f"{done.command}  stopped")


def ended(done: documents_work.Ended, asked: Mapping[str, object]) -> int:
    """Nothing but the exit status: the terminal has shown the rest."""
    return done.exit_code
