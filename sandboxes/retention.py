"""Which checkpoints are kept, and which expire: what `keep.toml` says of it, and the choice by it.

    [checkpoints]
    keep_last = 20          # the newest of each task
    keep_for = "2d"         # those that are younger
    hourly = 24             # of each of the last so many hours that have any, the newest; so daily, weekly, monthly
    daily = 7
    task_budget = "2GiB"    # what the checkpoints of one task may hold, before compression
    budget = "20GiB"        # and those of all tasks together

A checkpoint that any rule keeps is kept; if there is no rule, all are. Whatever the rules and budgets say, these stay:
the newest of each task, those that are pinned or tagged, and those that something is made of at this moment or was
made of that lives. Beyond a budget the oldest of the others expire early.

Pure functions but for `load`, which reads the settings again whenever they are asked for.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sandkeep.projections import Checkpoint
from sandkeep.sandboxes import quantity
from sandkeep.sandboxes.fields import Fields, read, table_of

_MOST = 1_000_000
_YEARS = 100 * 366 * 86_400
_MOST_BYTES = 1 << 60

Held = Callable[[Sequence[Checkpoint]], int]
"""How many bytes the checkpoints of one task hold together, given oldest first."""


class Policy(msgspec.Struct, frozen=True):
    """What keeps checkpoints, 0 for what does not; `keep_for` is in seconds. A budget of 0 is none."""

    keep_last: int = 0
    keep_for: float = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    task_budget: int = 0
    budget: int = 0

    @property
    def ruled(self) -> bool:
        """Whether there is a rule that keeps some, and so lets others go."""
        return any((self.keep_last, self.keep_for, self.hourly, self.daily, self.weekly, self.monthly))


class Surplus(msgspec.Struct, frozen=True):
    """A checkpoint that is to expire, and why."""

    checkpoint: Checkpoint
    reason: str


_PERIODS: dict[str, str] = {"hourly": "%Y-%m-%dT%H", "daily": "%Y-%m-%d", "weekly": "%G-W%V", "monthly": "%Y-%m"}
_NO_RULE = "no rule keeps it"
TASK_BUDGET, BUDGET = "the task's budget is used up", "the keep's budget is used up"


def load(keep: Path) -> Policy:
    """The policy of the keep in the folder `keep`. Raises `BadSettings`, which names all that is wrong."""
    return read(keep / "keep.toml", _policy)


def by_rules(policy: Policy, taken: Sequence[Checkpoint], needed: Collection[str], now_ns: int) -> list[Surplus]:
    """Those of one task's checkpoints, oldest first, that no rule keeps, and nothing needs by its id."""
    if not policy.ruled:
        return []
    kept = {each.id for each in taken[-policy.keep_last :]} if policy.keep_last else set()
    kept |= {each.id for each in taken if now_ns - each.time_ns < policy.keep_for * 1e9}
    for name, period in _PERIODS.items():
        newest = {_when(each).strftime(period): each.id for each in taken}  # the last of each wins
        kept |= set(list(newest.values())[-count:]) if (count := getattr(policy, name)) else set()
    return [Surplus(each, _NO_RULE) for each in _loose(taken, needed) if each.id not in kept]


def by_task_budget(policy: Policy, taken: Sequence[Checkpoint], needed: Collection[str], held: Held) -> list[Surplus]:
    """Those of one task's checkpoints, oldest first, that have to go so that the others hold no more than they may."""
    found: list[Surplus] = []
    left = list(taken)
    for each in _loose(taken, needed) if policy.task_budget else ():
        if held(left) <= policy.task_budget:
            break
        left.remove(each)
        found.append(Surplus(each, TASK_BUDGET))
    return found


def by_budget(
    policy: Policy, taken: Mapping[str, Sequence[Checkpoint]], needed: Mapping[str, Collection[str]], held: Held
) -> list[Surplus]:
    """Of the checkpoints of all tasks, those that have to go so that the others hold no more than they may together."""
    if not policy.budget:
        return []
    left = {task: list(found) for task, found in taken.items()}
    holding = {task: held(found) for task, found in left.items()}
    loose = [each for task, found in taken.items() for each in _loose(found, needed[task])]
    gone: list[Surplus] = []
    for each in sorted(loose, key=lambda each: each.position):
        if sum(holding.values()) <= policy.budget:
            break
        left[each.task].remove(each)
        holding[each.task] = held(left[each.task])
        gone.append(Surplus(each, BUDGET))
    return gone


def _loose(taken: Sequence[Checkpoint], needed: Collection[str]) -> list[Checkpoint]:
    """Those that may expire, oldest first."""
    return [each for each in taken[:-1] if not each.pinned and not each.tags and each.id not in needed]


def _when(checkpoint: Checkpoint) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(checkpoint.time_ns // 10**9, datetime.UTC)


def _policy(document: Mapping[str, Any], problems: list[str]) -> Policy:
    fields = Fields(table_of(document, "checkpoints", problems), "[checkpoints] ", problems)
    counts = {
        name: int(fields.take(name, quantity.whole, 0, _MOST, 0))
        for name in ("keep_last", "hourly", "daily", "weekly", "monthly")
    }
    sizes = {name: int(fields.take(name, quantity.size, 0, _MOST_BYTES, 0)) for name in ("task_budget", "budget")}
    keep_for = fields.take("keep_for", quantity.seconds, 0, _YEARS, 0)
    fields.end()
    return Policy(**counts, **sizes, keep_for=keep_for)
