"""Commands in the background: who starts one is killed at every step, or is looked at meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sandkeep.projections import registry
from sandkeep.sandboxes import Keep, Task, steward
from sandkeep.sandboxes.background import Running
from sandkeep.sandboxes.errors import SandboxGone

from .support import eventually, left, shell, stopped_at, types

pytestmark = pytest.mark.engine

LINE = ("sh", "-c", "echo x >>file; echo said; while ! [ -e stop ]; do sleep 0.02; done")


def test_what_is_being_started_is_settled_by_nobody_else(task: Task) -> None:
    with stopped_at("before:agent.run", "start", task.sandbox.folder.parents[1], task.id, *LINE):
        (found,) = task.running()
        assert found.wait(0.3) is None
        assert types(task.history())[-1] == "CommandRequested"
    with pytest.raises(SandboxGone):
        found.wait(60)
    assert not (task.workspace / "file").exists()
    assert (task.state.pending, left(task)) == ((), [])


STEPS = ("after:locks.act", "before:agent.run", "after:agent.run", "after:command.launch")


@pytest.mark.parametrize("step", STEPS)
def test_a_start_cut_off_has_begun_once_or_never(keep: Keep, task: Task, step: str) -> None:
    with stopped_at(step, "start", keep.path, task.id, *LINE) as process:
        process.kill()
        process.wait()
    said = keep.reconcile(again=True)
    if STEPS.index(step) < STEPS.index("after:agent.run"):
        assert len(said) == 1
        assert types(task.history())[-1] == "CommandFailed"
        assert not (task.workspace / "file").exists()
    else:
        assert said == []
        (found,) = task.running()
        eventually(lambda: found.output() == b"said\n")
        (task.workspace / "stop").touch()
        result = found.wait(60)
        assert result is not None
        assert (result.exit_code, result.stdout.data) == (0, b"said\n")
        assert (task.workspace / "file").read_text() == "x\n"
    assert (task.state.pending, left(task), keep.reconcile(again=True)) == ((), [], [])
    assert shell(task, "echo alive") == "alive\n"


def test_what_begins_while_old_output_is_removed_keeps_its_own(
    keep: Keep, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: Callable[[Keep], list[registry.Task]] = steward.busy
    started: list[Running] = []

    def meanwhile(keep: Keep) -> list[registry.Task]:
        """Who works on what, as it was known just before another began."""
        found = busy(keep)
        if not started:
            started.append(task.start(LINE))
            eventually(lambda: started[0].output() == b"said\n")
        return found

    monkeypatch.setattr(steward, "busy", meanwhile)
    steward._sweep(keep)
    assert started[0].output() == b"said\n"
    (task.workspace / "stop").touch()
    result = started[0].wait(60)
    assert result is not None
    assert (result.exit_code, result.stdout.data) == (0, b"said\n")
