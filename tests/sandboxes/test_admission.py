"""Who may start a sandbox, and in which order: real processes that want the same memory."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from sandkeep.events import catalogue as ev
from sandkeep.projections import resources as uses
from sandkeep.sandboxes import Keep
from sandkeep.sandboxes.errors import BudgetExhausted

from .support import eventually
from .waiter import promise

pytestmark = pytest.mark.engine

MIB = 1 << 20
WAITER = Path(__file__).with_name("waiter.py")


def begun(keep: Keep, task: str, mib: int, wait: float = 0.0, most: int = 100) -> None:
    """Promise a task's sandbox memory, without starting it."""
    promise(keep, task, ev.Limits(mib * MIB, 1, 16, MIB), most * MIB, wait)


def ended(keep: Keep, task: str) -> None:
    """The sandbox did not come to be."""
    keep.decide(task, lambda _: [ev.SandboxFailed(f"s{task}", "x", "y")])


def promised(keep: Keep) -> dict[str, int]:
    with keep.projections.reading() as state:
        return {each.task: each.promised // MIB for each in uses.live(state)}


def test_memory_is_promised_up_to_the_budget(keep: Keep) -> None:
    begun(keep, "a", 60)
    begun(keep, "b", 40)
    assert promised(keep) == {"a": 60, "b": 40}
    head = keep.head().position
    with pytest.raises(BudgetExhausted, match="0B are free and 1MiB needed; held by task a 60MiB, task b 40MiB;"):
        begun(keep, "c", 1)
    assert keep.head().position == head + 1  # the task alone
    ended(keep, "a")
    begun(keep, "c", 60)
    assert promised(keep) == {"b": 40, "c": 60}


def test_swap_counts(keep: Keep) -> None:
    with pytest.raises(BudgetExhausted, match="110MiB of memory are more than"):
        promise(keep, "a", ev.Limits(60 * MIB, 1, 16, MIB, swap_bytes=50 * MIB), 100 * MIB, 0)


def test_a_ticket_of_the_dead_holds_up_nobody(keep: Keep) -> None:
    folder = keep.path / "run" / "admission"
    folder.mkdir(parents=True)
    (folder / f"{7:012}").touch()
    begun(keep, "a", 60)
    assert sorted(path.name for path in folder.iterdir()) == ["counter"]


def waiter(keep: Keep, task: str, mib: int) -> subprocess.Popen[str]:
    """A process that waits for memory, and says so when it has it; it gives it back when it is told to."""
    command = [sys.executable, "-P", str(WAITER), str(keep.path), task, str(mib)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def waiting(keep: Keep) -> int:
    return len(list((keep.path / "run" / "admission").glob("[0-9]*")))


def queued(keep: Keep, number: int) -> bool:
    return waiting(keep) == number


def test_who_comes_first_is_served_first_in_all_processes(keep: Keep) -> None:
    begun(keep, "a", 90)
    # The first wants much. Those behind it would fit at once, and must not pass it.
    wanted = [("b", 80), ("c", 5), ("d", 5), ("e", 5)]
    processes = []
    try:
        for number, (task, mib) in enumerate(wanted):
            processes.append(waiter(keep, task, mib))
            eventually(partial(queued, keep, number + 1))
        victim = processes[2]
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        assert promised(keep) == {"a": 90}
        ended(keep, "a")
        for process in (processes[0], processes[1], processes[3]):
            assert process.stdout is not None
            assert process.stdout.readline() == "promised\n"
        assert promised(keep) == {"b": 80, "c": 5, "e": 5}
        order = [record.stream for record in keep.events() if record.type == "SandboxRequested"]
        assert order == ["task/a", "task/b", "task/c", "task/e"]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    begun(keep, "z", 1)
    assert waiting(keep) == 0


def test_waiting_ends_when_its_time_is_up(keep: Keep) -> None:
    begun(keep, "a", 90)
    with pytest.raises(BudgetExhausted, match="10MiB are free and 20MiB needed"):
        begun(keep, "b", 20, wait=0.3)
    process = waiter(keep, "c", 20)
    try:
        eventually(lambda: waiting(keep) == 1)
        with pytest.raises(BudgetExhausted, match=r"others wait for memory before task d, which waits for 0\.3 s"):
            begun(keep, "d", 1, wait=0.3)
    finally:
        process.kill()
        process.communicate()
