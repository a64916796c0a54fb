"""What came of an intent: how it is stored, and how errors are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from sandkeep.events import SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import decider

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

INTERRUPTED = ("interrupted", "the process that did this ended before it was done")
"""Code and message of what was cut off."""

_MAX_WORDS = 2000


def settle(keep: Keep, task_id: str, outcome: ev.Outcome) -> None:
    """Store what came of an intent, and have the task's memory folder brought up to date."""
    keep.decide(task_id, partial(decider.settle, outcome=outcome))
    keep.trailing.soon(task_id)


@contextlib.contextmanager
def failing_as(keep: Keep, task_id: str, failure: type[ev.Failure], made: str) -> Iterator[None]:
    """Record what the block raises as the outcome of the intent `made`, and raise it."""
    try:
        yield
    except (SandkeepError, OSError) as error:
        settle(keep, task_id, failure(made, *words(error)))
        raise


def words(error: SandkeepError | OSError) -> tuple[str, str]:
    """Code and message of an error, as a `Failure` holds them."""
    return (error.code if isinstance(error, SandkeepError) else "os-error"), str(error)[:_MAX_WORDS]
