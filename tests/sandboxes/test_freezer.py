"""Sandboxes that are held still for a checkpoint: consistent, short, and never left so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Task, cgroup, freezer, manifest
from sandkeep.sandboxes.cgroup import Group
from sandkeep.sandboxes.errors import EngineUnreachable

pytestmark = pytest.mark.engine

WRITES = """
count = 0
while True:
    count += 1
    for name in "abcdefgh":
        with open(name, "r+b" if count > 1 else "w+b") as file:
            file.write(b"%012d" % count)
"""
"""A program that writes the same number into eight files, one after the other, and then the next."""


@pytest.fixture
def writing(keep: Keep) -> Iterator[Task]:
    """A task in which that program runs."""
    made = keep.create_task("writes")
    made.start(["python3", "-c", WRITES])
    while not (made.workspace / "h").exists():
        time.sleep(0.01)
    yield made
    made.complete()
    made.clean_up()


def numbers(keep: Keep, digest: str) -> list[int]:
    found = manifest.load(digest, keep.blobs)
    return [int(keep.blobs.get(found[name.encode()].content)) for name in "abcdefgh"]


def is_consistent(found: list[int]) -> bool:
    """Whether the numbers are what was there at one moment."""
    return found == sorted(found, reverse=True) and found[0] - found[-1] <= 1


@pytest.mark.parametrize("way", ["freezer", "engine"])
def test_a_checkpoint_of_a_running_task_is_of_one_moment(
    keep: Keep, writing: Task, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "engine":
        monkeypatch.setattr(cgroup, "freeze", denied)
    taken = [writing.checkpoint() for _ in range(5)]
    found = [numbers(keep, each.digest) for each in taken]
    assert all(map(is_consistent, found)), found
    assert [each.torn for each in taken] == [()] * 5
    assert found[0] < found[-1]
    events = [record.event for record in keep.events() if isinstance(record.event, ev.CheckpointCreated)]
    assert all(event.frozen_ns > 0 and event.commands == 1 for event in events)
    assert freezer.abandoned(keep) == []


def denied(group: object) -> None:
    raise PermissionError("the freezer is not ours")


HOLDS = """
import os, sys, time
from sandkeep.sandboxes import Keep, freezer
with Keep.open(sys.argv[1]) as keep:
    task = keep.task(sys.argv[2])
    with keep.working(task.id), freezer.held(keep, task.id, task.state.container) as held:
        assert held
        print("held", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("who", ["the next command", "the steward"])
def test_a_sandbox_that_was_held_still_by_one_who_died_goes_on(keep: Keep, writing: Task, who: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDS, keep.path, writing.id], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = [writing.workspace.joinpath(name).read_bytes() for name in "abcdefgh"]
        time.sleep(0.05)
        assert [writing.workspace.joinpath(name).read_bytes() for name in "abcdefgh"] == before
        os.kill(holder.pid, signal.SIGKILL)
    assert freezer.abandoned(keep) == [writing.id]
    if who == "the steward":
        assert any("held still" in line for line in keep.reconcile(again=True))
    else:
        assert writing.execute(["true"]).exit_code == 0
    assert freezer.abandoned(keep) == []
    first = numbers(keep, writing.checkpoint().digest)
    time.sleep(0.05)
    assert numbers(keep, writing.checkpoint().digest) > first


@pytest.mark.parametrize("left", [b"", bytes(64)], ids=["empty", "zeros"])
def test_a_note_that_a_power_failure_took_the_content_of_holds_nothing_up(
    keep: Keep, writing: Task, left: bytes
) -> None:
    note = keep.path / "run" / "still" / writing.id
    note.parent.mkdir(exist_ok=True)
    note.write_bytes(left)
    assert writing.execute(["true"]).exit_code == 0
    assert freezer.abandoned(keep) == []
    note.write_bytes(left)
    assert any("held still" in line for line in keep.reconcile(again=True))
    assert freezer.abandoned(keep) == []


def test_a_checkpoint_is_taken_while_no_engine_answers(
    keep: Keep, writing: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> None:
        raise EngineUnreachable("no engine answers")

    with monkeypatch.context() as patch:
        patch.setattr(keep.engine, "status", unreachable)
        taken = writing.checkpoint()
    assert taken.files == 8
    assert set(taken.torn) <= set("abcdefgh")


def test_a_freezer_that_does_not_come_to_an_end_is_given_up(writing: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    container = writing.state.container
    assert container is not None
    group = cgroup.find(container, lambda: None)
    assert group is not None
    monkeypatch.setattr(cgroup, "_FREEZE_SECONDS", -1.0)
    monkeypatch.setattr(cgroup, "_freezer", never_frozen(cgroup._freezer))
    assert not cgroup.freeze(group)
    before = (writing.workspace / "a").read_bytes()
    for _ in range(1000):
        if (writing.workspace / "a").read_bytes() != before:
            break
        time.sleep(0.01)
    assert (writing.workspace / "a").read_bytes() != before


def never_frozen(real: Callable[[Group], tuple[Path, str, str, str]]) -> Callable[[Group], tuple[Path, str, str, str]]:
    """The freezer's files, and a word that never stands in them."""
    return lambda group: (*real(group)[:3], "never")
