"""Running commands: what comes back, what is recorded, and that nothing survives its time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandkeep.events import BadInput
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Task, agent, spool
from sandkeep.sandboxes.errors import BadTimeout, CommandNotFound, EngineFailed, OutsideWorkspace
from sandkeep.sandboxes.execution import FLOODED, TIMED_OUT, content

from .support import container_of, engine, eventually, left, shell, text, types

pytestmark = pytest.mark.engine


def processes(task: Task) -> list[str]:
    """The command lines of all that runs in the sandbox, without what it consists of itself."""
    with engine() as client:
        found = client.api.top(container_of(task), ps_args="-eo pid,args")["Processes"]
    return [line for _, line in found if "/run/sandkeep/agent" not in line]


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


# ---- results


def test_streams_exit_code_and_duration_come_back_and_are_recorded(shared_task: Task) -> None:
    result = shared_task.execute(["sh", "-c", "echo out; echo err >&2; sleep 0.3; exit 7"])
    assert (result.exit_code, result.timed_out) == (7, False)
    assert (result.stdout.data, result.stderr.data) == (b"out\n", b"err\n")
    assert 0.3 <= result.duration_s < 20
    *_, requested, executed = shared_task.history()
    assert isinstance(requested.event, ev.CommandRequested)
    assert requested.event.argv == ("sh", "-c", "echo out; echo err >&2; sleep 0.3; exit 7")
    assert isinstance(executed.event, ev.CommandExecuted)
    assert 0 < executed.event.cpu_ns < 10**10
    assert executed.event == ev.CommandExecuted(
        result.command, 7, executed.event.duration_ns, False, result.stdout, result.stderr, executed.event.cpu_ns
    )


def test_a_command_ended_by_a_signal_has_the_shells_exit_code(shared_task: Task) -> None:
    assert shared_task.execute(["sh", "-c", "kill -KILL $$"]).exit_code == 137


def test_variables_are_set_and_only_their_names_are_recorded(shared_task: Task) -> None:
    env = {"B": "hush\nline $HOME", "A": "", "_sandkeep": "mine"}
    assert shell(shared_task, 'printf "%s|%s" "$B" "${A-unset}"', env=env) == "hush\nline $HOME|"
    *_, requested, _ = shared_task.history()
    assert isinstance(requested.event, ev.CommandRequested)
    assert requested.event.env == ("A", "B", "_sandkeep")
    assert "hush" not in repr(requested.event)


def test_a_command_runs_in_the_folder_it_was_given(shared_task: Task) -> None:
    shell(shared_task, "mkdir -p cwd/deep")
    for cwd in ("cwd/deep", "/workspace/cwd/deep", "cwd/deep/../deep"):
        assert text(shared_task.execute(["pwd"], cwd=cwd)) == "/workspace/cwd/deep\n"
    assert text(shared_task.execute(["pwd"])) == "/workspace\n"


def test_nothing_can_be_read_from_standard_input(shared_task: Task) -> None:
    assert text(shared_task.execute(["cat"])) == ""


def test_a_program_of_the_workspace_can_be_run(shared_task: Task) -> None:
    shell(shared_task, "printf '#!/bin/sh\\necho \"$1\"\\n' >program; chmod +x program")
    assert text(shared_task.execute(["./program", "a  b"])) == "a  b\n"


def test_output_that_is_not_text_comes_back_as_it_was(shared_task: Task) -> None:
    result = shared_task.execute(["python3", "-c", "import sys; sys.stdout.buffer.write(bytes(range(256)))"])
    assert result.stdout.data == bytes(range(256))


def test_large_output_is_a_blob_that_the_log_vouches_for(shared_keep: Keep, shared_task: Task) -> None:
    result = shared_task.execute(["python3", "-c", "import sys; sys.stdout.write('x' * 16384 * 20 + 'end')"])
    assert (result.stdout.size, result.stdout.data, result.stdout.truncated) == (16384 * 20 + 3, None, False)
    assert content(result.stdout, shared_keep.blobs) == b"x" * 16384 * 20 + b"end"
    *_, executed = shared_task.history()
    assert isinstance(executed.event, ev.CommandExecuted)
    assert executed.event.stdout.blob == result.stdout.blob


# ---- refusals


def test_a_program_that_is_not_there_is_said_so(task: Task) -> None:
    before = task.state
    for argv, env in ((["nothing-of-that-name"], {}), (["./nothing"], {}), (["env"], {"PATH": "/nonexistent"})):
        with pytest.raises(CommandNotFound, match="has no program"):
            task.execute(argv, env=env)
    assert (task.state.executions, task.state.failures) == (3, 3)
    assert (task.state.container, task.state.pending) == (before.container, ())
    *_, failed = task.history()
    assert isinstance(failed.event, ev.CommandFailed)
    assert failed.event.code == "command-not-found"


def test_a_folder_that_is_not_there_is_said_so(shared_task: Task) -> None:
    with pytest.raises(OutsideWorkspace, match="has no folder '/workspace/missing'"):
        shared_task.execute(["true"], cwd="missing")


def test_nothing_is_stored_of_a_command_that_cannot_be(shared_keep: Keep, shared_task: Task) -> None:
    head = shared_keep.head()
    for argv in ([], [""], ["a\0b"], ["\udcff"], ["x" * 40_000], "true"):
        with pytest.raises(BadInput):
            shared_task.execute(argv)
    for env in ({"": "x"}, {"A=B": "x"}, {"1A": "x"}, {"A": "a\0b"}, {"A": "\udcff"}, {"A": "x" * 40_000}):
        with pytest.raises(BadInput):
            shared_task.execute(["true"], env=env)
    for cwd in ("..", "/etc", "/workspace/../memory", "a\0"):
        with pytest.raises(OutsideWorkspace):
            shared_task.execute(["true"], cwd=cwd)
    for timeout in (0, -1, float("nan"), float("inf"), 1e9):
        with pytest.raises(BadTimeout, match="a timeout of"):
            shared_task.execute(["true"], timeout=timeout)
    assert shared_keep.head() == head


# ---- time


SURVIVORS = {
    "a plain child": "sleep 1000 & sleep 1000",
    "another session": "setsid sleep 1000 & setsid -w sleep 1000",
    "a double fork": "(setsid sh -c '(sleep 1000 &) & sleep 1000' &) ; sleep 1000",
    "one that ignores signals": "trap '' TERM INT HUP QUIT; sh -c 'trap \"\" TERM; while :; do sleep 1; done' & wait",
    "an empty environment": "env -i setsid sleep 1000 & sleep 1000",
    "a fork each second": "while :; do setsid sh -c 'sleep 1000 & sleep 0.1' & sleep 0.1; done",
    "one that is stopped": "sleep 1000 & kill -STOP $!; kill -STOP $$",
}


@pytest.mark.parametrize("how", SURVIVORS)
def test_nothing_survives_a_timeout(shared_task: Task, how: str) -> None:
    result = shared_task.execute(["sh", "-c", f"echo begun; {SURVIVORS[how]}"], timeout=0.6)
    assert (result.exit_code, result.timed_out, result.stdout.data) == (TIMED_OUT, True, b"begun\n")
    assert 0.6 <= result.duration_s < 20
    assert processes(shared_task) == []
    inside = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"
    assert "sleep" not in shell(shared_task, inside)


def test_a_background_child_delays_nobody_and_goes_on(task: Task) -> None:
    result = task.execute(["sh", "-c", "(sleep 0.5; echo late >late) & echo early"], timeout=60)
    assert result.stdout.data == b"early\n"
    assert not (task.workspace / "late").exists()
    eventually((task.workspace / "late").exists)


def test_commands_run_side_by_side(task: Task) -> None:
    os.mkfifo(task.workspace / "a")
    os.mkfifo(task.workspace / "b")
    for name in "ab":
        (task.workspace / name).chmod(0o666)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(shell, task, "echo 1 >a; cat b", timeout=60)
        two = pool.submit(shell, task, "cat a; echo 2 >b", timeout=60)
        assert (one.result(), two.result()) == ("2\n", "1\n")
    assert task.state.executions == 2


def test_a_timeout_ends_nothing_of_what_runs_beside_it(task: Task) -> None:
    shell(task, "(while ! [ -e stop ]; do sleep 0.05; done; echo late >late) &")
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(task.execute, ["sh", "-c", "touch begun; while ! [ -e stop ]; do sleep 0.05; done"])
        eventually((task.workspace / "begun").exists)
        assert task.execute(["sleep", "1000"], timeout=0.5).timed_out
        (task.workspace / "stop").touch()
        assert beside.result().exit_code == 0
    eventually((task.workspace / "late").exists)
    assert (task.state.executions, task.state.failures, task.state.pending) == (3, 1, ())


# ---- output as it comes


def test_output_is_given_as_it_comes(shared_task: Task) -> None:
    came: list[tuple[str, bytes]] = []
    script = "echo one; while ! [ -e go ]; do sleep 0.02; done; rm go; echo two >&2; printf three"

    def note(name: str, data: bytes) -> None:
        came.append((name, data))
        if came == [("stdout", b"one\n")]:
            shared_task.workspace.joinpath("go").touch()
            os.chmod(shared_task.workspace, 0o777)

    result = shared_task.execute(["sh", "-c", script], timeout=60, on_output=note)
    assert came[0] == ("stdout", b"one\n")
    assert b"".join(data for name, data in came if name == "stdout") == b"one\nthree" == result.stdout.data
    assert b"".join(data for name, data in came if name == "stderr") == b"two\n" == result.stderr.data


@pytest.mark.parametrize("error", [LookupError, BrokenPipeError, KeyboardInterrupt])
def test_a_callback_that_raises_ends_its_command(task: Task, error: type[BaseException]) -> None:
    def refuse(name: str, data: bytes) -> None:
        raise error(name)

    with pytest.raises(error, match="stdout"):
        task.execute(["sh", "-c", "echo begun; setsid sleep 1000"], on_output=refuse)
    assert processes(task) == []
    assert task.state.pending == ()
    *_, failed = task.history()
    assert isinstance(failed.event, ev.CommandFailed)
    assert failed.event.code == "interrupted"
    assert shell(task, "echo alive") == "alive\n"


def test_what_runs_unwatched_after_the_agent_failed_ends_with_the_next_command(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, ticks = container_of(task), task.workspace / "ticks"

    def fail(*arguments: object) -> None:
        eventually(ticks.exists)
        raise EngineFailed("the agent does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(agent, "wait", fail)
        with pytest.raises(EngineFailed):
            task.execute(["sh", "-c", "while :; do date >>ticks; sleep 0.01; done"])
    failed, lost = [record.event for record in task.history()][-2:]
    assert isinstance(failed, ev.CommandFailed)
    assert failed.code == "engine-failed"
    assert lost == ev.SandboxLost(before, "the engine failed while a command ran in it")
    assert (task.state.container, task.state.pending) == (None, ())
    assert shell(task, "echo alive") == "alive\n"
    assert container_of(task) != before
    size = ticks.stat().st_size
    assert shell(task, "sleep 0.2") == ""
    assert ticks.stat().st_size == size


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_command_that_writes_too_much_is_ended(
    keep: Keep, task: Task, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    monkeypatch.setattr(spool, "OUTPUT_BYTES", 100_000)
    redirect = " >&2" if stream == "stderr" else ""
    result = task.execute(["sh", "-c", f"while :; do echo too much{redirect}; done"], timeout=60)
    assert (result.exit_code, result.timed_out) == (FLOODED, False)
    output = getattr(result, stream)
    assert (output.size, output.truncated) == (100_000, True)
    assert content(output, keep.blobs) == (b"too much\n" * 20_000)[:100_000]
    assert processes(task) == []
    assert left(task) == []


def test_no_file_of_a_command_is_left(shared_keep: Keep, shared_task: Task) -> None:
    shell(shared_task, "echo x; echo y >&2")
    assert left(shared_task) == []
    assert list(shared_keep.intents.iterdir()) == []


def test_the_time_up_is_that_of_the_command_not_of_the_engine(task: Task) -> None:
    begun = time.monotonic()
    result = task.execute(["sleep", "1000"], timeout=1e-6)
    assert (result.timed_out, result.exit_code) == (True, TIMED_OUT)
    assert time.monotonic() - begun < 30
    assert types(task.history())[-2:] == ["CommandRequested", "CommandExecuted"]


def test_a_workspace_that_the_command_locked_can_be_used_again_after_a_restore(task: Task) -> None:
    shell(task, "echo x >file")
    checkpoint = task.checkpoint()
    shell(task, "chmod 000 /workspace")
    task.restore_checkpoint(checkpoint.id)
    assert shell(task, "cat file") == "x\n"


def test_a_new_file_of_the_host_is_seen_inside(shared_task: Task) -> None:
    path: Path = shared_task.workspace / "from the host"
    path.write_text("hello")
    assert text(shared_task.execute(["cat", "from the host"])) == "hello"
