"""What is on record of a task, and what people and agents add to it: what was decided, and why.

All of it is read from the log, so it outlives the task's folders. Reading a stream costs what the stream is long.
"""

from __future__ import annotations

import unicodedata
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from sandkeep.events import BadInput, Record, late
from sandkeep.events import catalogue as ev
from sandkeep.projections import Decision, Execution, Stats, branches, registry, summary
from sandkeep.projections.branches import Line
from sandkeep.sandboxes import decider
from sandkeep.sandboxes.errors import TaskNotFound

if TYPE_CHECKING:
    from sandkeep.sandboxes import memory
    from sandkeep.sandboxes.keep import Keep
else:
    globals().update(late.bound("sandkeep.sandboxes", "memory"))

MAX_DECISION = 2000
"""How many characters a decision has at most, and its reason."""

MAX_ALTERNATIVES, MAX_ALTERNATIVE = 10, 500

# What ends a line, or is no character at all. Others that do not print are kept, and shown as escapes.
_REFUSED = ("Cc", "Cs", "Zl", "Zp")


class Recorded:
    """The record of a task of an open keep."""

    def __init__(self, keep: Keep, task_id: str) -> None:
        """Use `Keep.task` instead."""
        self._keep = keep
        self.id = task_id

    @property
    def state(self) -> registry.Task:
        """What is true of the task now. Raises `TaskNotFound`."""
        with self._keep.projections.reading() as state:
            found = registry.find(state, self.id)
        if found is None:
            raise TaskNotFound(f"there is no task {self.id}; 'sandkeep list-tasks' shows those there are")
        return found

    def history(self, after: int = 0, *, types: Collection[str] = (), last: int | None = None) -> Iterator[Record]:
        """The task's records behind revision `after`: those of `types`, if any are named, and of these the `last`."""
        records = self._keep.log.read_stream(registry.STREAM + self.id, after)
        chosen = (record for record in records if not types or record.type in types)
        return iter(deque(chosen, last)) if last is not None else chosen

    def executions(self) -> Iterator[Execution]:
        """The commands that were run in the task, in the order in which they ended; those under way come last."""
        return summary.executions(self.history())

    def execution(self, number: int) -> Execution:
        """The command of this number, counted from 1. Raises `BadInput` if there have not been as many."""
        for found in self.executions():
            if found.number == number:
                return found
        raise BadInput(
            f"task {self.id} has no execution {number}; 'sandkeep task-executions {self.id}' lists those it has"
        )

    def decisions(self) -> Iterator[Decision]:
        """What was decided in the task, oldest first, also on branches that it has left."""
        line = self.line()
        return (
            msgspec.structs.replace(each, abandoned=each.position not in line)
            for each in summary.decisions(self.history())
        )

    def line(self) -> Line:
        """Which positions lead to what the task is now; all others are on branches that it has left."""
        return Line(branches.turns(self.history(types=(ev.CheckpointRestored.__name__,))))

    def stats(self) -> Stats:
        """The numbers of the task. Raises `TaskNotFound`."""
        return summary.stats(self.state, summary.tally(self.history()))

    def record_decision(self, text: str, *, reason: str = "", alternatives: Sequence[str] = ()) -> Decision:
        """Put on record that the keep's actor decided `text`, for `reason`, and what else there was to choose.

        Each is one line: at most 2,000 characters, an alternative 500, and at most 10 of these. Raises `BadInput`, and
        `TaskRefused` once the task has been cleaned up.
        """
        event = ev.DecisionRecorded(
            _line("a decision", text, MAX_DECISION),
            _line("a reason", reason, MAX_DECISION, least=0),
            _alternatives(alternatives),
        )
        receipt = self._keep.decide(self.id, partial(decider.record, event=event))
        memory.trail(self._keep, self.id)
        # As the log has it: another may have decided something at the same moment.
        return next(found for found in self.decisions() if found.position == receipt.first)

    def rebuild_memory(self) -> memory.Refreshed:
        """Make all pages of the memory folder anew from the log, and tell which of them were not what they should be.

        A plan that somebody has edited is left as it is. Raises `MemoryUnavailable` if there is no folder, or it cannot
        be written.
        """
        return memory.rebuild(self._keep, self.id)


def _line(what: str, text: str, most: int, *, least: int = 1) -> str:
    text = text.strip()
    if not least <= len(text) <= most:
        raise BadInput(f"{what} has {least} to {most} characters, this one has {len(text)}; reword it")
    if any(unicodedata.category(character) in _REFUSED for character in text):
        raise BadInput(f"{what} is one line without control characters; reword it")
    return text


def _alternatives(texts: Iterable[str]) -> tuple[str, ...]:
    if isinstance(texts, str):
        raise BadInput("alternatives are a list of texts; put the one into a list")
    checked = tuple(_line("an alternative", text, MAX_ALTERNATIVE) for text in texts)
    if len(checked) > MAX_ALTERNATIVES:
        raise BadInput(f"a decision has at most {MAX_ALTERNATIVES} alternatives; name those that mattered")
    return checked
