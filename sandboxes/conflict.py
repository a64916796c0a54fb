"""Conflicts: found by looking at a workspace before and after each command, settled by strategy or by choice.

A task is looked at once several agents have run commands in it, or rules were set for it; others pay nothing. Each look
compares the workspace with the last one (see `survey`), records what changed and whose it is, and what collides
(`collision`): decide. What a strategy then puts back or merges is written into the workspace: effect.
`ConflictResolved` says that it was: outcome. A process that dies before it leaves the conflict open, to be settled.

Everything here runs under `keep.working(task)`, so that looks of one task follow each other. A command may write a path
between our last look at it and our putting another content there; that is one system call, and what was lost then
was never seen by anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

from sandkeep.events import BadInput, Record, late
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Rule
from sandkeep.projections import Conflict, Strategy, conflicts, registry
from sandkeep.sandboxes.conflict_work import News, Work

if TYPE_CHECKING:
    from reactivex import Observable, operators

    from sandkeep.sandboxes.keep import Keep
else:
    globals().update(late.bound("reactivex", "operators"))

MAX_RULES = 100
_MAX_PATTERN = 500


def begin(keep: Keep, task: str) -> None:
    """Look at a workspace before a command of ours begins. The caller is `working` on the task."""
    Work(keep, task).look_or_log()


def end(keep: Keep, task: str, command: str) -> News | None:
    """Look at a workspace when our `command` has ended, before its outcome is stored, and tell what concerns us.

    None if only one agent works on the task. That looking fails is logged: the next look finds the same.
    """
    with keep.working(task):
        return Work(keep, task, command).look_or_log()


@final
class TaskConflicts:
    """The conflicts of one task. Made by `Keep.conflicts`."""

    def __init__(self, keep: Keep, task: str) -> None:
        """Use `Keep.conflicts` instead."""
        self._keep = keep
        self._task = task

    def list(self, *, settled: bool = False) -> list[Conflict]:
        """The open conflicts, oldest first; also those that were `settled`, if asked for."""
        with self._keep.projections.reading() as state:
            return list((conflicts.conflicts if settled else conflicts.open_conflicts)(state, self._task))

    def live(self) -> Observable[Record]:
        """The records of this task's conflicts, detected and settled, in whatever process. See `Bus.live`."""
        stream, told = registry.STREAM + self._task, ("ConflictDetected", "ConflictResolved")

        def concerns(record: Record) -> bool:
            return record.stream == stream and record.type in told

        return self._keep.bus.live().pipe(operators.filter(concerns))

    def rules(self) -> tuple[Rule, ...]:
        """What settles conflicts: the first rule whose pattern matches; `three-way` where none does."""
        with self._keep.projections.reading() as state:
            return conflicts.rules(state, self._task) or ()

    def set_rules(self, rules: Sequence[Rule]) -> None:
        """Settle conflicts by these rules from now on; the task is looked at from now on, however few work on it.

        Raises `BadInput`, and `TaskRefused` if the task was cleaned up.
        """
        event = ev.ConflictPolicySet(tuple(map(check_rule, rules)))
        if len(event.rules) > MAX_RULES:
            raise BadInput(f"there are {len(event.rules)} rules, more than {MAX_RULES}; use fewer, with wider patterns")
        with self._keep.working(self._task):
            Work(self._keep, self._task).store([event])

    def resolve(self, conflict: str, take: str | Path) -> Conflict:
        """Settle an open conflict: with "ours" (what the later agents wrote), "theirs" (what was there before),
        "merged" (both, if they do not overlap), or the content of the file at a path of the host.

        Raises `ConflictNotFound`, `ConflictRefused`, `BadInput`.
        """
        with self._keep.working(self._task):
            return Work(self._keep, self._task).resolve(conflict, take)


def check_rule(rule: Rule) -> Rule:
    """The rule, if it is one. Raises `BadInput`."""
    if not (0 < len(rule.pattern) <= _MAX_PATTERN and rule.pattern.isprintable()):
        raise BadInput(f"a pattern has 1 to {_MAX_PATTERN} printable characters; shorten or reword it")
    if rule.strategy == Strategy.OWN_WORKSPACE and rule.pattern != "*":
        raise BadInput(
            f"a workspace is an agent's own as a whole, so {rule.strategy} is for the pattern '*' only, not for"
            f" {rule.pattern[:40]!r}"
        )
    if rule.strategy not in tuple(Strategy):
        raise BadInput(f"{rule.strategy[:40]!r} is no strategy; use one of {', '.join(Strategy)}")
    return rule
