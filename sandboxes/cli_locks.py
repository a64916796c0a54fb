"""The command line's verbs for locks: attach an agent to a task, detach it, show who holds what, break a lock.

They hold no logic. A process that attaches ends, and the lock stays held until its lease runs out; `execute --token`
renews it, before the command and while it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from sandkeep.projections import Claim, Lock, Mode
from sandkeep.sandboxes import render, render_forks
from sandkeep.sandboxes.clock import BootTime, boot_clock
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AsJson, KeepPath, TaskId, Token

ATTACHED_SECONDS = 3600.0
"""How long an attached agent may be silent: nobody renews its lease while it thinks."""

app = typer.Typer()


@app.command("attach")
def attach(
    task: TaskId,
    mode: Annotated[Mode, typer.Option(help="Alone, or beside others that collaborate.")] = Mode.EXCLUSIVE,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait; 0 to try only once.")] = 60.0,
    lease: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long it is held without a sign of life.")
    ] = ATTACHED_SECONDS,
    agent: Annotated[str | None, typer.Option(metavar="NAME", help="Who; by default who acts.")] = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Attach an agent to a task by its lock, and print the token that its commands and 'detach' are given."""
    with Keep.open(keep) as opened:
        found = opened.task(task)
        name = agent or opened.actor
        held = opened.locking.acquire(
            found.id, mode=mode, timeout=timeout, lease=lease, agent=name, session=f"agent {name}", heartbeat=False
        )
    if json:
        render.print_json({"task": found.id, "agent": name, "mode": mode, "token": held.token, "lease_s": lease})
    else:
        print(held.token)


@app.command("detach")
def detach(task: TaskId, token: Token = None, keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Detach an agent: what it did in a workspace of its own is merged, and its lock goes to whoever waits next."""
    if token is None:
        raise typer.BadParameter("say which by --token or SANDKEEP_TOKEN; 'sandkeep locks' shows those there are")
    with Keep.open(keep) as opened:
        found = opened.task(task)
        merged = opened.locking.release(found.id, token)
    if json:
        own = {} if merged is None else {"merged": render_forks.merged_document(merged)}
        render.print_json({"task": found.id, "token": token} | own)
    else:
        print(f"{found.id}  detached")
        if merged is not None:
            render_forks.print_merged(merged)


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
