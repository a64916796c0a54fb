"""What all keeps of a machine are promised together, on the real engine.

Others may use this engine meanwhile, so what is counted here is so large that theirs is nothing: the engine lets a
sandbox have more memory than there is, if it is asked to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Task, admission, ledger, limits, pool, pressure, slot
from sandkeep.sandboxes.errors import BadSettings, BudgetExhausted, TaskRefused
from sandkeep.sandboxes.ledger import Amount, Ledger, Promise
from sandkeep.sandboxes.limits import Host

from ..conftest import close
from .limited import configure, events, held
from .support import eventually, shell, stopped_at

pytestmark = pytest.mark.engine

TIB = 1 << 40


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host folder of one's own, where all sandboxes together may have 20 TiB of memory."""
    folder = tmp_path / "host"
    folder.mkdir()
    allow(folder, 'memory = "20TiB"')
    monkeypatch.setenv("SANDKEEP_HOST", str(folder))
    return folder


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Keep]:
    """Another keep on the same machine."""
    made = Keep.init(tmp_path / "other", actor="somebody else")
    yield made
    close(made)


def allow(folder: Path, text: str) -> None:
    """Write what the owner of a machine would write into its host.toml."""
    (folder / "host.toml").write_text(f"[budget]\n{text}\n")


def large(keep: Keep, tib: int, wait: str = "0s", more: str = "") -> Task:
    """A task whose sandbox is to have so much memory."""
    configure(keep, f'[limits]\nmemory = "{tib}TiB"\ncpus = 0.5\n[budget]\nmemory = "500TiB"\nwait = "{wait}"\n{more}')
    return keep.create_task("large", limits={"memory": f"{tib}TiB"})


def promised(keep: Keep) -> list[tuple[str, int]]:
    """What was promised in a keep: to which task, and how many TiB."""
    found = Ledger(keep.engine).promises()
    return [(each.task, each.amount.memory_bytes // TIB) for each in found if each.keep == keep.id]


class Starting:
    """A sandbox that is started on a thread."""

    def __init__(self, task: Task) -> None:
        self.said: list[str] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(task,))
        self._thread.start()

    def _run(self, task: Task) -> None:
        try:
            task.start_sandbox(self.said.append)
        except Exception as error:  # noqa: BLE001 - for the test to look at
            self._error = error

    def waits(self) -> bool:
        """Whether it said that it does."""
        return any(line.startswith("waiting for room: ") for line in self.said)

    @property
    def error(self) -> Exception | None:
        """What it came to."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self._error


def test_all_keeps_together_are_promised_no_more_than_the_machine_has(machine: Path, keep: Keep, other: Keep) -> None:
    first, second = large(keep, 12), large(other, 9)
    first.start_sandbox()
    assert promised(keep) == [(first.id, 12)]
    with pytest.raises(BudgetExhausted) as caught:
        second.start_sandbox()
    said = str(caught.value)
    assert said.startswith("of the 20TiB of memory that all sandboxes of this machine may have, ")
    assert f"and 9TiB of memory needed; held by task {first.id} of keep {keep.id} 12TiB of memory" in said
    assert events(second, ev.SandboxRequested) == []
    with pytest.raises(BudgetExhausted, match="21TiB of memory are more than all sandboxes of this machine may have"):
        keep.resources(first.id).set({"memory": "16TiB", "swap": "5TiB"})
    allow(machine, 'memory = "20TiB"\ncpus = 0.9')
    with pytest.raises(BudgetExhausted, match=r"of the 0\.9 processors that .* 0\.5 processors needed; held by task"):
        other.create_task("small", limits={"memory": "1GiB", "cpus": 0.5}).start_sandbox()
    allow(machine, 'memory = "20TiB"\npids = 100')
    with pytest.raises(
        BudgetExhausted, match="512 processes are more than all sandboxes of this machine may have, 100"
    ):
        second.start_sandbox()
    allow(machine, 'memory = "20TiB"')
    first.complete()
    second.start_sandbox()
    assert (promised(keep), promised(other)) == ([], [(second.id, 9)])
    with pytest.raises(BudgetExhausted, match=f"held by task {second.id} of keep {other.id}"):
        large(keep, 12).start_sandbox()


def test_many_who_reserve_at_once_are_never_promised_more_than_there_is(keep: Keep) -> None:
    held, most, counting, begin = 0, 0, threading.Lock(), threading.Barrier(8)
    known = Ledger(keep.engine)

    def reserve(number: int) -> int:
        nonlocal held, most
        served = 0
        begin.wait()
        for _ in range(5):
            try:
                with known.reserved(Promise("k", f"t{number}", Amount(6 * TIB))):
                    with counting:
                        held, served = held + 1, served + 1
                        most = max(most, held)
                    time.sleep(0.01)
                    with counting:
                        held -= 1
            except BudgetExhausted:
                continue
        return served

    with ThreadPoolExecutor(8) as threads:
        served = sum(threads.map(reserve, range(8)))
    assert most <= 3
    assert served >= 5
    assert [each for each in known.promises() if each.keep == "k"] == []


def test_more_for_a_sandbox_that_lives_counts_too(keep: Keep, other: Keep) -> None:
    first, second = large(keep, 8), large(other, 8)
    first.start_sandbox()
    second.start_sandbox()
    with pytest.raises(BudgetExhausted, match=f"held by task {first.id} of keep {keep.id} 8TiB"):
        other.resources(second.id).set({"memory": "14TiB"})
    assert events(second, ev.LimitsRequested) == []
    other.resources(second.id).set({"memory": "11TiB"})
    assert promised(other) == [(second.id, 11)]
    assert held(second)["Memory"] == 11 * TIB
    use = keep.resources(first.id).use
    assert use.container is not None
    asked = ev.ExtensionRequested("x", use.container, 8 * TIB, 8 * TIB, 12 * TIB, ev.Lease("gone", 0))
    keep.decide(first.id, lambda _: [asked, ev.ExtensionPrepared("x", False, None, "")])
    with pytest.raises(BudgetExhausted, match="12TiB of memory needed"):
        keep.resources(first.id).extend()
    (done,) = [line for line in pressure.advance(keep, first.id, limits.Relief(16 * TIB)) if "no more" in line]
    assert "it is given no more memory: of the 20TiB of memory that all sandboxes of this machine may have" in done


@pytest.mark.parametrize("step", ["before:engine.start", "after:engine.start"])
def test_what_is_about_to_start_counts_until_its_process_is_gone(keep: Keep, other: Keep, step: str) -> None:
    first, second = large(keep, 12), large(other, 9)
    with stopped_at(step, "execute", keep.path, first.id, "true") as process:
        assert promised(other) == []
        assert promised(keep) == [(first.id, 12)]
        with pytest.raises(BudgetExhausted, match=f"held by task {first.id} of keep {keep.id} 12TiB"):
            second.start_sandbox()
        process.kill()
        process.wait()
    assert promised(keep) == ([] if step.startswith("before") else [(first.id, 12)])
    keep.reconcile(again=True)
    second.start_sandbox()
    assert (promised(keep), promised(other)) == ([], [(second.id, 9)])


def test_a_change_cut_off_is_not_completed_beyond_what_there_is(keep: Keep, other: Keep) -> None:
    first, second = large(keep, 8), large(other, 9)
    first.start_sandbox()
    with stopped_at("before:engine.limit", "limit", keep.path, first.id, "14TiB") as process:
        assert promised(keep) == [(first.id, 14)]
        process.kill()
        process.wait()
    second.start_sandbox()
    keep.reconcile(again=True)
    assert [each.code for each in events(first, ev.LimitsFailed)] == ["budget-exhausted"]
    assert (held(first)["Memory"], keep.resources(first.id).limits.memory_bytes) == (8 * TIB, 8 * TIB)


def test_what_is_started_ahead_counts_and_makes_way(keep: Keep, other: Keep) -> None:
    large(keep, 12, more="[sandboxes]\npool = 1")
    pool.fill(keep)
    (name,) = slot.names(keep)
    assert promised(keep) == [(name, 12)]
    waiting = large(other, 9, wait="60s")
    starting = Starting(waiting)
    eventually(lambda: starting.waits() and pool.fill(keep))
    assert slot.names(keep) == []
    assert starting.error is None
    assert promised(other) == [(waiting.id, 9)]
    with pytest.raises(BudgetExhausted, match=f"held by task {waiting.id} of keep {other.id}"):
        pool.fill(keep)
    assert slot.names(keep) == []


def test_what_is_started_ahead_counts_in_its_keep_and_its_task_waits_for_nobody(keep: Keep) -> None:
    settings = '[limits]\nmemory = "64MiB"\n[budget]\nmemory = "100MiB"\nwait = 0\n[sandboxes]\npool = 1'
    first = keep.create_task("before")
    configure(keep, settings)
    pool.fill(keep)
    (name,) = slot.names(keep)
    with pytest.raises(BudgetExhausted, match=f"36MiB are free and 64MiB needed; held by task {name} 64MiB"):
        first.start_sandbox()
    configure(keep, settings.replace("wait = 0", 'wait = "60s"'))
    starting = Starting(first)
    eventually(starting.waits)
    with keep.projections.reading() as state:
        assert admission.promised(keep, state) == {name: 64 << 20}
    taken = keep.create_task("takes the slot")
    assert (taken.id, shell(taken, "echo alive")) == (name, "alive\n")
    taken.complete()
    assert starting.error is None


def test_who_waits_for_room_holds_up_nothing_in_the_task(keep: Keep, other: Keep) -> None:
    first = large(keep, 12)
    first.start_sandbox()
    for end, words in (
        (Task.complete, "was completed meanwhile"),
        (lambda task: task.fail("no use"), "was failed meanwhile"),
        (Task.pause, "was paused meanwhile"),
    ):
        task = large(other, 9, wait="60s")
        starting = Starting(task)
        eventually(starting.waits)
        with other.attempting(task.id) as mine:
            assert mine
        assert not task.state.pending
        task.checkpoint("meanwhile")
        task.stop()
        end(task)
        assert isinstance(starting.error, TaskRefused)
        assert f"task {task.id} waited for room for its sandbox, and {words}" in str(starting.error)
    assert promised(other) == []


def test_two_commands_of_a_task_wait_for_one_sandbox(keep: Keep, other: Keep) -> None:
    first, task = large(keep, 12), large(other, 9, wait="60s")
    first.start_sandbox()
    both = Starting(task), Starting(task)
    eventually(lambda: all(each.waits() for each in both))
    first.complete()
    assert [each.error for each in both] == [None, None]
    assert len(events(task, ev.SandboxStarted)) == 1
    assert promised(other) == [(task.id, 9)]


def test_keeps_take_turns_and_none_passes_another(keep: Keep, other: Keep) -> None:
    first = large(keep, 12)
    first.start_sandbox()
    much = large(other, 10, wait="60s")
    waits = Starting(much)
    eventually(waits.waits)
    little = large(keep, 1, wait="1s")
    with pytest.raises(BudgetExhausted, match=f"others of this machine wait for memory before task {little.id}"):
        little.start_sandbox()
    # Who waits for the budget of its own keep holds up no other keep.
    first.complete()
    assert waits.error is None
    configure(keep, '[budget]\nmemory = "2TiB"\nwait = "60s"')
    keep.task(little.id).start_sandbox()
    own = keep.create_task("own", limits={"memory": "2TiB"})
    waits = Starting(own)
    eventually(waits.waits)
    other.create_task("passes", limits={"memory": "1TiB"}).start_sandbox()
    little.complete()
    assert waits.error is None


def test_a_host_toml_is_checked(machine: Path, keep: Keep) -> None:
    assert limits.load_host(machine / "nothing") == Host()
    allow(machine, 'memory = "lots"\npids = 1.5\ndisk = 1\n[limits]')
    with pytest.raises(BadSettings) as caught:
        Ledger(keep.engine).most()
    for words in ("has 4 errors", "memory: 'lots' is no size", "1.5 is no whole", "disk: there is no", "limits: there"):
        assert words in str(caught.value)


def test_without_a_host_toml_the_machine_is_shared_but_for_a_reserve(machine: Path, keep: Keep) -> None:
    (machine / "host.toml").unlink()
    most = Ledger(keep.engine).most()
    memory = keep.engine.facts.memory_bytes
    assert most.memory_bytes == memory - max(1 << 30, memory // 10)
    assert (most.nano_cpus, most.pids) == (0, int(Path("/proc/sys/kernel/pid_max").read_text()) * 9 // 10)


def test_the_host_folder(keep: Keep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SANDKEEP_HOST", str(tmp_path / "file"))
    with pytest.raises(BadSettings, match="cannot be made: Not a directory; set SANDKEEP_HOST"):
        keep.create_task("t").start_sandbox()
    monkeypatch.delenv("SANDKEEP_HOST")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert ledger.host_folder() == tmp_path / ".local" / "state" / "sandkeep"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert ledger.host_folder() == tmp_path / "state" / "sandkeep"
