"""What we rely on of an engine to run commands: by the agent's socket, by a stream of the engine's, and by itself."""

from __future__ import annotations

from functools import partial

import pytest

from sandkeep.sandboxes import Keep, Task, agent, interpreter
from sandkeep.sandboxes.container import AGENT, GUEST, SHELL
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.errors import CommandNotFound, SandboxGone
from sandkeep.sandboxes.podman import UNTOLD

from ..support import container_of, eventually, shell, text

TREE = "trap '' TERM; (setsid sleep 1000 &); (setsid sh -c 'trap \"\" TERM; sleep 1000 & sleep 1000' &); sleep 1000"


def count(task: Task, name: str) -> int:
    """How many processes of that name there are in the sandbox."""
    line = f"for p in /proc/[0-9]*; do cat $p/comm 2>/dev/null; done | grep -cx {name}"
    return int((task.execute(["sh", "-c", line]).stdout.data or b"0").strip())


def test_the_agent_is_reached_by_its_socket(shared_keep: Keep, shared_task: Task) -> None:
    assert shared_keep.engine.form(container_of(shared_task)) == AGENT
    connection = agent.greet(shared_task.sandbox.spool, container_of(shared_task), 30)
    assert connection is not None
    connection.sock.close()


def test_the_agent_is_reached_by_way_of_the_engine(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "connect", lambda folder, sandbox: None)
    task = keep.create_task("far away")
    assert shell(task, "echo out; cat", stdin=b"in\n") == "out\nin\n"
    assert keep.engine.relays
    result = task.execute(["sh", "-c", TREE], timeout=1)
    assert (result.exit_code, result.timed_out) == (124, True)
    assert count(task, "sleep") == 0
    large = task.execute(["head", "-c", "3000000", "/dev/zero"])
    assert (large.exit_code, large.stdout.size) == (0, 3_000_000)

    def end(stream: str, data: bytes) -> None:
        keep.engine.remove(container_of(task))

    with pytest.raises(SandboxGone):
        task.execute(["sh", "-c", "echo begun; sleep 1000"], timeout=300, on_output=end)
    assert shell(task, "echo in another") == "in another\n"


def test_output_input_status_and_environment(shared_task: Task) -> None:
    line = 'cat; echo err >&2; echo "$WORD $PWD"; exit 3'
    result = shared_task.execute(["sh", "-c", line], stdin=b"in\n", env={"WORD": "a b"})
    assert (result.exit_code, result.stdout.data, result.stderr.data) == (3, b"in\na b /workspace\n", b"err\n")
    with pytest.raises(CommandNotFound):
        shared_task.execute(["no-such-program"])


def test_a_tree_that_ignores_being_ended_is_ended_in_time_and_nothing_else_is(shared_task: Task) -> None:
    server = shared_task.start(["sleep", "999"])
    result = shared_task.execute(["sh", "-c", TREE], timeout=1)
    assert (result.exit_code, result.timed_out) == (124, True)
    assert result.duration_s < 5
    assert count(shared_task, "sleep") == 1
    server.stop()
    assert count(shared_task, "sleep") == 0


@pytest.mark.parametrize(
    "line", ["x = b'x' * (1 << 29)", "import os; os.system('head -c 512M /dev/zero | tail -c 500M')"]
)
def test_what_runs_out_of_memory_is_told(shared_keep: Keep, shared_task: Task, line: str) -> None:
    shared_keep.resources(shared_task.id).set({"memory": "100MiB"}, reason="contract")
    result = shared_task.execute(["python3", "-c", line], timeout=60)
    assert result.oom_killed
    assert shell(shared_task, "echo alive") == "alive\n"


def test_what_the_engine_starts_for_us_is_followed(shared_keep: Keep, shared_task: Task) -> None:
    engine, container = shared_keep.engine, container_of(shared_task)
    # podman does not tell how something has ended that nobody was attached to.
    for argv, expected in ((["sh", "-c", "exit 7"], {7, UNTOLD}), (["no-such-program"], {126, 127})):
        started = engine.detach(container, argv)
        eventually(partial(ended, engine, started))
        assert engine.exit_status(started) in expected


def ended(engine: Engine, started: str) -> bool:
    """Whether what the engine started has ended."""
    return engine.exit_status(started) is not None


def test_an_image_without_python_is_lent_one(keep: Keep) -> None:
    small = keep.create_task("small", image="busybox")
    assert text(small.execute(["cat"], stdin=b"given")) == "given"
    assert keep.engine.form(container_of(small)) == GUEST
    assert small.execute(["sh", "-c", TREE], timeout=1).timed_out
    assert text(small.execute(["sh", "-c", "ps | grep -c '[s]leep'; true"])) == "0\n"


def test_an_image_without_any_python_has_its_commands_run_by_the_engine(
    shared_keep: Keep, small: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter, "borrowed", lambda keep: None)
    result = small.execute(["sh", "-c", 'echo out; echo err >&2; echo "$WORD"; exit 3'], env={"WORD": "a b"})
    assert (result.exit_code, result.stdout.data, result.stderr.data) == (3, b"out\na b\n", b"err\n")
    assert shared_keep.engine.form(container_of(small)) == SHELL
    before = container_of(small)
    shared_keep.resources(small.id).set({"memory": "300MiB"}, reason="contract")
    assert small.execute(["sh", "-c", "sleep 1000 & sleep 1000"], timeout=1).timed_out
    assert text(small.execute(["sh", "-c", "ps | grep -c '[s]leep'; true"])) == "0\n"
    assert container_of(small) == before
    sample = shared_keep.resources(small.id).sample()
    assert sample is not None
    assert sample.memory_limit == 300 << 20
    with pytest.raises(CommandNotFound):
        small.execute(["no-such-program"])
    small.stop()
