"""A briefing: all that is on record of a task which somebody must know to go on with it, short enough to be read.

It is made from the log and the workspace alone, so it is there however the last one left.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from sandkeep.events import SandkeepError
from sandkeep.projections import Decision, Execution, TaskState, conflicts, locks
from sandkeep.sandboxes import documents_agents as documents
from sandkeep.sandboxes.pages import PLAN
from sandkeep.sandboxes.task import Task
from sandkeep.sandboxes.text import moment

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

MOST_RUNS, MOST_DECISIONS, MOST_FILES, MOST_PLAN = 10, 20, 50, 8_000

_TESTS = re.compile(r"(^|[\s/;&|'\"])(pytest|tox|nox|unittest|jest|vitest|mocha|rspec|ctest|phpunit|[\w.-]*tests?)\b")


def briefing(keep: Keep, task: Task) -> documents.Briefing:
    """The briefing of a task."""
    runs = sorted(task.executions(), key=lambda each: each.number, reverse=True)
    decided = [each for each in task.decisions() if not each.abandoned]
    kept = task.checkpoints()
    with keep.projections.reading() as view:
        attached = locks.find(view, task.id).holding
        collisions = sum(1 for _ in conflicts.open_conflicts(view, task.id))
    changed = _changed(task)
    return documents.Briefing(
        workspace=None if task.state.state is TaskState.CLEANED else os.fspath(task.workspace),
        plan=page(task, PLAN, MOST_PLAN),
        runs_in_all=len(runs),
        runs=[_run(each) for each in runs[:MOST_RUNS]],
        tests=next((_run(each) for each in runs if _TESTS.search(" ".join(each.argv))), None),
        running=[_run(each) for each in runs if each.ended_ns is None],
        decided=[_decision(each) for each in decided[-MOST_DECISIONS:]],
        changed=None if changed is None else changed[:MOST_FILES],
        changed_in_all=len(changed or ()),
        checkpoint=None
        if not kept
        else documents.LastCheckpoint(kept[-1].id, kept[-1].label, moment(kept[-1].time_ns)),
        attached=[documents.Holder(each.agent, each.mode) for each in attached],
        open_conflicts=collisions,
    )


def page(task: Task, name: str, most: int) -> str:
    """The end of a page of a task's memory folder; empty if there is none. Others may write there, so no link is
    followed."""
    with contextlib.suppress(OSError):
        folder = os.open(task.folder / "memory", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
        with open(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            file.seek(max(size - most, 0))
            return file.read(most).decode("utf-8", "replace")
    return ""


def _changed(task: Task) -> list[documents.ChangedFile] | None:
    """What differs from the last checkpoint; of a task that has none, from nothing is no answer."""
    try:
        return [documents.ChangedFile(each.path, each.change) for each in task.diff(text=False)]
    except (SandkeepError, OSError):
        return None


def _run(each: Execution) -> documents.Run:
    ended = each.reason or each.message or ("" if each.ended_ns is not None else "it goes on")
    begun = moment(each.begun_ns)
    return documents.Run(each.number, each.command, each.argv, each.actor, begun, each.exit_code, ended)


def _decision(each: Decision) -> documents.Decided:
    return documents.Decided(each.text, each.reason, each.actor, moment(each.time_ns))
