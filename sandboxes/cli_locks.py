"""The command line's verbs for locks: attach an agent to a task, detach it, show who holds what, break a lock.

They hold no logic. A process that attaches ends, and the lock stays held until its lease runs out; `execute --token`
renews it, before the command and while it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from sandkeep.projections import Claim, Lock
from sandkeep.sandboxes import render
from sandkeep.sandboxes.clock import BootTime, boot_clock
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AsJson, KeepPath, TaskId

ATTACHED_SECONDS = 3600.0
"""How long an attached agent may be silent: nobody renews its lease while it thinks."""

app = typer.Typer()


@app.command("break-lock")
def break_lock(
    task: TaskId,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; it is recorded.")],
    token: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only this holder's.")] = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Take a task's lock from those who hold it; who waits for it may not. Their tokens are stale at once."""
    with Keep.open(keep) as opened:
        found = opened.task(task)
        taken = opened.locking.take_away(found.id, reason, token)
    if json:
        render.print_json({"task": found.id, "broken": [{"agent": each.agent, "token": each.token} for each in taken]})
    else:
        for each in taken:
            print(render.plain(f"{found.id}  taken from {each.agent}, token {each.token}"))


@app.command("locks")
def list_locks(
    ever: Annotated[bool, typer.Option("--all", help="Also those that nobody holds now, for their counts.")] = False,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Show who holds which lock and who waits, for how long, and how contended each was."""
    now = boot_clock()()
    with Keep.open(keep) as opened:
        found = opened.locks(ever=ever)
    if json:
        render.print_json([_document(lock, now) for lock in found])
    else:
        render.print_locks(found, now)


def _document(lock: Lock, now: BootTime) -> render.Document:
    counts = lock.counts
    return {
        "task": lock.task,
        "holding": [_claim(each, now) | {"token": each.token} for each in lock.holding],
        "waiting": [_claim(each, now) for each in lock.waiting],
        "counts": {
            "requests": counts.requests,
            "contended": counts.contended,
            "grants": counts.grants,
            "released": counts.released,
            "expired": counts.expired,
            "broken": counts.broken,
            "timed_out": counts.timed_out,
            "deadlocks": counts.deadlocks,
            "waited_s": counts.waited_ns / 1e9,
            "longest_wait_s": counts.longest_wait_ns / 1e9,
            "held_s": counts.held_ns / 1e9,
        },
    }


def _claim(claim: Claim, now: BootTime) -> render.Document:
    return {
        "agent": claim.agent,
        "mode": claim.mode,
        "since": render.moment(claim.since_ns),
        "left_s": round(now.left_ns(claim.lease) / 1e9, 3),
    }
