"""What the command line shows people of agents, their locks, their own workspaces and their conflicts."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from sandkeep.events.catalogue import Rule
from sandkeep.sandboxes import documents, documents_agents, documents_work, render

_SHOWN = 10


def attached(held: documents_work.Attached, asked: Mapping[str, object]) -> None:
    """The token, for a variable of a shell."""
    print(held.token)


def detached(done: documents_work.Detached, asked: Mapping[str, object]) -> None:
    """That an agent is detached, and what became of its own workspace."""
    print(f"{done.task}  detached")
    if isinstance(done.merged, documents_work.Merged):
        merged(done.merged, asked)


def merged(done: documents_work.Merged, asked: Mapping[str, object]) -> None:
    """What became of an own workspace."""
    if not done.undo:
        became = f"was discarded; checkpoint {done.checkpoint} has it"
    else:
        still = [each for each in done.conflicts if not each.taken]
        became = (
            f"was merged: {done.written} paths written, {len(done.conflicts)} collided, {len(still)} of them still"
            f" open; to undo, restore {done.undo}"
        )
    print(render.plain(f"{done.agent}'s own workspace {done.own} {became}"))


def published(done: documents_work.Published, asked: Mapping[str, object]) -> None:
    """The branch, and what is not in it."""
    print(render.plain(f"{done.branch}  {done.commit[:12]} in {done.repository}"))
    if done.uncommitted:
        print(f"not committed, and so not in it: {len(done.uncommitted)} paths of the workspace")
        for path in done.uncommitted[:_SHOWN]:
            print(render.plain(f"  {path}"))


def locks(found: list[documents_work.Lock], asked: Mapping[str, object]) -> None:
    """Who holds what, who waits, and how contended each lock was."""
    held = [
        (
            lock.task,
            render.plain(each.agent),
            "holds" if isinstance(each, documents_work.Holder) else "waits",
            each.mode,
            str(each.token) if isinstance(each, documents_work.Holder) else "",
            render.second(each.since),
            f"{each.left_s:.0f} s" if each.left_s else "over",
        )
        for lock in found
        for each in (*lock.holding, *lock.waiting)
    ]
    columns = ("TASK", "AGENT", "", "MODE", "TOKEN", "SINCE", "LEASE LEFT")
    render.print_rows(columns, held, "nobody holds a lock or waits for one")
    counted = []
    for lock in found:
        counts = lock.counts
        numbers = (counts.grants, counts.contended, counts.expired, counts.broken, counts.timed_out)
        counted.append((lock.task, *map(str, numbers), f"{counts.longest_wait_s:.3f} s"))
    if counted:
        columns = ("TASK", "GRANTS", "CONTENDED", "EXPIRED", "BROKEN", "TIMED OUT", "LONGEST WAIT")
        render.print_rows(columns, counted)


def broken(done: documents_work.Broken, asked: Mapping[str, object]) -> None:
    """Who a lock was taken from, a line each."""
    for each in done.broken:
        print(render.plain(f"{done.task}  taken from {each.agent}, token {each.token}"))


def conflicts(found: list[documents.Conflict], asked: Mapping[str, object]) -> None:
    """Conflicts, a line each."""
    for each in found:
        conflict(each, asked)


def conflict(found: documents.Conflict, asked: Mapping[str, object]) -> None:
    """A conflict, on one line."""
    sides = f"{', '.join(found.agents)} over {', '.join(found.others) or 'nobody known'}"
    state = f"{found.taken} taken" if found.taken else "open"
    print(render.plain(f"{found.id}  {found.kind}  {found.path}  {sides}  {state}"))


def rules(found: list[Rule], asked: Mapping[str, object]) -> None:
    """How conflicts are settled, a line for each rule."""
    for rule in found:
        print(render.plain(f"{rule.pattern}={rule.strategy}"))


def output(part: documents_agents.OutputPart, asked: Mapping[str, object]) -> None:
    """The part itself, and on standard error where the next one begins."""
    print(part.text, end="")
    if part.next is not None:
        print(f"sandkeep: there is more from --offset {part.next} on", file=sys.stderr)


def resumed(done: documents_agents.Resumed, asked: Mapping[str, object]) -> None:
    """The state of the task, and the briefing."""
    told = done.briefing
    lines = [f"{done.id}  {done.state}", f"workspace: {told.workspace}"]
    if told.checkpoint is not None:
        lines.append(f"last checkpoint: {told.checkpoint.id}  {told.checkpoint.label}")
    lines += [f"attached: {each.agent} ({each.mode})" for each in told.attached]
    lines += [f"run {each.number}: {' '.join(each.argv)}  {_how(each)}" for each in reversed(told.runs)]
    if told.tests is not None:
        lines.append(f"tests: run {told.tests.number}  {_how(told.tests)}")
    lines += [f"decided: {each.text}" + (f", because {each.reason}" if each.reason else "") for each in told.decided]
    lines += [f"{each.change}: {each.path}" for each in told.changed or ()]
    if told.open_conflicts:
        lines.append(f"open conflicts: {told.open_conflicts}")
    for line in lines:
        print(render.plain(line))


def _how(run: documents_agents.Run) -> str:
    return run.ended if run.exit_code is None else f"exit code {run.exit_code} {run.ended}".rstrip()
