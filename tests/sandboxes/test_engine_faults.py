"""The engine is killed and started again, with and without live-restore: every outcome is known, nothing is left."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandkeep.events import SandkeepError
from sandkeep.projections import TaskState
from sandkeep.sandboxes import Keep, Task
from sandkeep.sandboxes.errors import EngineUnreachable
from sandkeep.sandboxes.recipe import base_recipe

from .private_engine import PrivateEngine, give_image, private_engine
from .support import containers, eventually, shell, types

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=[True, False], ids=["live-restore", "no live-restore"])
def dockerd(request: pytest.FixtureRequest) -> Iterator[PrivateEngine]:
    """An engine of this module's own, which has the base image; with and without live-restore."""
    with private_engine() as made:
        made.start(live_restore=request.param)
        give_image(made, base_recipe())
        yield made


@pytest.fixture
def keep(dockerd: PrivateEngine, keep: Keep, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keep]:
    """A keep that uses the private engine."""
    monkeypatch.setenv("DOCKER_HOST", dockerd.host)
    yield keep
    assert containers(keep.id) == []


def outcome(task: Task) -> str:
    """What becomes of a command that waits for a file."""
    try:
        line = "touch begun; while ! [ -e stop ]; do sleep 0.05; done; echo done"
        result = task.execute(["sh", "-c", line], timeout=60)
    except SandkeepError as error:
        return error.code
    return f"exit {result.exit_code}"


def assert_settled(keep: Keep, task: Task) -> None:
    """Log and engine agree, every command has its outcome, the next one works, and nothing of the task can be left."""
    keep.reconcile(again=True)
    assert task.state.pending == ()
    history = types(task.history())
    assert history.count("CommandRequested") == history.count("CommandExecuted") + history.count("CommandFailed")
    assert containers(keep.id) == [each for each in (task.state.container,) if each]
    assert shell(task, "echo alive", timeout=60) == "alive\n"
    assert containers(keep.id) == [task.state.container]
    assert keep.reconcile(again=True) == []
    task.complete()
    task.clean_up()


def test_the_engine_is_killed_while_a_command_runs(dockerd: PrivateEngine, keep: Keep, task: Task) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(outcome, task)
        eventually((task.workspace / "begun").exists)
        dockerd.kill()
        try:
            other = keep.create_task("made without an engine")
            with pytest.raises(EngineUnreachable):
                other.execute(["true"])
            assert other.state.pending == ()
        finally:
            dockerd.restart()
        (task.workspace / "stop").touch()
        assert running.result(60) in ("exit 0", "engine-unreachable", "engine-failed", "sandbox-gone")
    assert shell(other, "echo alive") == "alive\n"
    other.complete()
    other.clean_up()
    assert_settled(keep, task)


def test_the_engine_is_killed_while_nothing_runs(dockerd: PrivateEngine, keep: Keep, task: Task) -> None:
    shell(task, "echo kept >file")
    dockerd.kill()
    dockerd.restart()
    assert shell(task, "cat file", timeout=60) == "kept\n"
    assert_settled(keep, task)


@pytest.mark.parametrize("verb", ["pause", "stop", "complete"])
def test_the_engine_is_away_when_it_is_needed(dockerd: PrivateEngine, keep: Keep, task: Task, verb: str) -> None:
    dockerd.kill()
    try:
        with pytest.raises(EngineUnreachable):
            getattr(task, verb)()
        assert (task.state.state, task.state.pending) == (TaskState.ACTIVE, ())
    finally:
        dockerd.restart()
    assert_settled(keep, task)


def test_a_steward_outlives_the_engine(dockerd: PrivateEngine, keep: Keep, task: Task) -> None:
    told: list[str] = []
    with keep.steward(told.append) as running:
        assert running.working.wait(30)
        dockerd.kill()
        running.hurry()
        eventually(lambda: any("EngineUnreachable" in line for line in told))
        dockerd.restart()
        running.hurry()
        eventually(lambda: "reconcile: works again" in told)
    assert_settled(keep, task)
