"""The command line with an engine: the contract that scripts rely on, verb by verb."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandkeep.projections import TaskState
from sandkeep.sandboxes import Keep, Task
from sandkeep.sandboxes.execution import FLOODED
from sandkeep.sandboxes.limits import LIMITS

from .support import SCRIPT, Cli, containers, eventually, remove_containers, run_script, types

pytestmark = pytest.mark.engine


@pytest.fixture
def task_id(keep: Keep, task: Task) -> str:
    """The id of a task in `keep`, which is closed so that the command line can open it."""
    keep.close()
    return task.id


def with_json(*arguments: str) -> list[str]:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    return [*arguments[:split], "--json", *arguments[split:]]


def test_a_task_from_beginning_to_end_in_documents(cli: Cli, source: Path) -> None:
    keep = cli("init", "--json").json["id"]
    try:
        made = cli("create-task", "a title", "--source", str(source), "--json").json
        task = made["id"]
        assert (made["state"], made["title"], made["source"]) == ("created", "a title", str(source))
        assert (made["container"], containers(keep)) == (None, [])
        ran = cli(*with_json("execute", task[:6], "--env", "A=b=c", "--", "sh", "-c", "echo $A; echo e >&2; exit 3"))
        assert (ran.status, ran.stderr) == (0, b"")
        assert ran.json["duration_s"] > 0
        expected = {"exit_code": 3, "stdout": "b=c\n", "stderr": "e\n", "timed_out": False, "stdout_blob": None}
        assert expected.items() <= ran.json.items()
        taken = cli("checkpoint", task, "--label", "a label", "--json").json
        assert (taken["task"], taken["label"]) == (task, "a label")
        assert (taken["files"], taken["bytes"]) > (3, 0)
        assert len(taken["digest"]) == 64
        assert taken["torn"] == []
        cli(*with_json("execute", task, "--", "sh", "-c", "rm -rf * .git"))
        restored = cli("restore-checkpoint", task, taken["id"], "--json").json
        assert (restored["digest"], restored["checkpoint"]) == (taken["digest"], taken["id"])
        assert cli(*with_json("execute", task, "--", "./run")).json["stdout"] == "ran\n"
        assert cli("show-task", task, "--json").json["checkpoints"][0]["id"] == taken["id"]
        assert cli("pause-task", task, "--json").json["state"] == "paused"
        assert cli("resume-task", task).stdout.startswith(f"{task}  active\n".encode())
        assert cli("stop-task", task, "--json").json["container"] is None
        assert containers(keep) == []
        assert cli("complete-task", task, "--json").json["state"] == "completed"
        assert cli("reopen-task", task, "--reason", "once more", "--json").json["state"] == "active"
        assert cli(*with_json("execute", task, "--", "./run")).json["stdout"] == "ran\n"
        assert cli("complete-task", task, "--summary", "done", "--json").json["state"] == "completed"
        assert cli("cleanup-task", task, "--json").json["state"] == "cleaned"
        assert cli("list-tasks", "--json").json["tasks"] == []
        assert cli("list-tasks", "--state", "cleaned", "--json").json["tasks"][0]["id"] == task
        assert cli("verify", "--json").json["ok"]
        assert cli("replay", "--json").json["ok"]
        history = [record["type"] for record in cli("task-history", task, "--json").json]
        assert history[-3:] == ["SandboxRemoved", "CleanupRequested", "TaskCleaned"]
        assert containers(keep) == []
    finally:
        remove_containers(keep)


def test_a_task_from_beginning_to_end_in_words(cli: Cli) -> None:
    keep = cli("init", "--json").json["id"]
    try:
        answer = cli("create-task", "a title")
        task = answer.stdout.decode().strip()
        assert len(task) == 12
        assert cli("execute", task, "--", "true").stdout == b""
        taken = cli("checkpoint", task).stdout.decode()
        assert "0 files, 0 bytes, digest " in taken
        restored = cli("restore-checkpoint", task, taken.split()[0]).stdout.decode()
        assert restored.startswith(f"restored {taken.split()[0]}, digest ")
        assert cli("complete-task", task, "--failed", "--summary", "no luck").stdout == f"{task}  failed\n".encode()
        assert b"no luck" in cli("show-task", task).stdout
        assert cli("cleanup-task", task).stdout == f"{task}  cleaned\n".encode()
        assert cli("verify").stdout.endswith(b" 2 blobs\n")
    finally:
        remove_containers(keep)


def test_without_json_streams_and_exit_status_are_the_commands_own(task_id: str, cli: Cli) -> None:
    answer = cli("execute", task_id, "--", "sh", "-c", "printf '\\377out'; printf err >&2; exit 42")
    assert (answer.status, answer.stdout, answer.stderr) == (42, b"\xffout", b"err")


def test_output_that_is_no_text_is_exact_in_the_document(task_id: str, cli: Cli) -> None:
    document = cli(*with_json("execute", task_id, "--", "printf", "\\377\\000ab")).json
    assert base64.b64decode(document["stdout_base64"]) == b"\xff\0ab"
    assert document["stdout_bytes"] == 4


def test_large_output_is_in_the_document_and_in_a_blob(task_id: str, cli: Cli) -> None:
    document = cli(*with_json("execute", task_id, "--", "head", "-c", "100000", "/dev/zero")).json
    assert document["stdout"] == "\0" * 100_000
    assert len(document["stdout_blob"]) == 64
    assert document["stdout_truncated"] is False


def test_a_timeout_is_said(task_id: str, cli: Cli) -> None:
    answer = cli("execute", task_id, "--timeout", "0.5", "--", "sleep", "1000")
    assert (answer.status, answer.stdout) == (124, b"")
    assert answer.stderr == b"sandkeep: the command was ended after 0.5 s\n"
    document = cli(*with_json("execute", task_id, "--timeout", "0.5", "--", "sleep", "1000")).json
    assert (document["exit_code"], document["timed_out"]) == (124, True)


def test_a_want_of_memory_is_said(task_id: str, cli: Cli) -> None:
    code = f"x = bytearray({LIMITS.memory_bytes} + 2**26); x[::4096] = b'x' * len(x[::4096])"
    answer = cli("execute", task_id, "--", "python3", "-c", code)
    assert (answer.status, answer.stdout) == (137, b"")
    assert answer.stderr == b"sandkeep: memory ran out, and the kernel ended a process of the command\n"


def test_a_flood_is_said(task_id: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandkeep.sandboxes.spool.OUTPUT_BYTES", 50_000)
    answer = cli(*with_json("execute", task_id, "--", "yes"))
    assert (answer.json["exit_code"], answer.json["stdout_truncated"]) == (FLOODED, True)


BAD = {
    "a program that is not there": (["execute", "TASK", "--", "nothing-of-that-name"], "command-not-found", 1),
    "a folder that is not there": (["execute", "TASK", "--cwd", "missing", "--", "true"], "outside-workspace", 2),
    "a cleanup too early": (["cleanup-task", "TASK"], "task-refused", 1),
    "an image that does not exist": (
        ["create-task", "t", "--image", "a.invalid/no:1"],
        "image-not-found",
        2,
    ),
    "an image without a name": (["create-task", "t", "--image", ""], "image-not-found", 2),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_no_half_made_task(task_id: str, cli: Cli, case: str) -> None:
    arguments, code, status = BAD[case]
    before = cli("list-tasks", *(f"--state={state}" for state in TaskState), "--json").json["tasks"]
    words = [task_id if word == "TASK" else word for word in arguments]
    answer = cli(*words)
    answer.refused(code, status)
    assert answer.stdout == b""
    document = cli(*with_json(*words)).json
    assert document["error"]["code"] == code
    after = cli("list-tasks", *(f"--state={state}" for state in TaskState), "--json").json["tasks"]
    assert [task["id"] for task in after] == [task["id"] for task in before]
    assert all(task["pending"] == [] for task in after)


def test_an_engine_that_went_away_is_said(task_id: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    assert cli("execute", task_id, "--", "echo", "alive").stdout == b"alive\n"  # the agent can do without
    before = cli.documents()
    cli("complete-task", task_id).refused("engine-unreachable", 1)
    assert cli.documents() == before
    assert cli("show-task", task_id, "--json").json["state"] == "active"


def test_torn_files_are_named(keep: Keep, task: Task, cli: Cli) -> None:
    (task.workspace / "a\nb").write_bytes(os.urandom(32 << 20))  # what takes longer to read than the clock to tick
    keep.close()
    code = "import os, sys\nwhile True: os.utime(sys.argv[1])"
    with subprocess.Popen([sys.executable, "-c", code, task.workspace / "a\nb"]) as toucher:
        answer = cli("checkpoint", task.id, "--json")
        toucher.kill()
    assert answer.stderr == b"sandkeep: torn: a\\nb\n"
    assert answer.json["torn"] == ["a\nb"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_ends_with_its_caller(keep: Keep, task: Task, number: signal.Signals) -> None:
    command: list[str | Path] = [
        SCRIPT,
        "execute",
        "--keep",
        keep.path,
        task.id,
        "--",
        "sh",
        "-c",
        "echo begun; setsid sleep 1000",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(number)
        assert process.wait(30) == 130
        assert process.stderr.read() == b""
    assert types(task.history())[-1] == "CommandFailed"
    assert not task.state.pending
    assert "sleep" not in str(task.execute(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]).stdout.data)


def test_output_comes_while_the_command_runs(keep: Keep, task: Task) -> None:
    command: list[str | Path] = [SCRIPT, "execute", "--keep", keep.path, task.id, "--", "sh", "-c"]
    wait = "echo one; while ! [ -e go ]; do sleep 0.05; done; echo two"
    with subprocess.Popen([*command, wait], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        (task.workspace / "go").touch()
        assert process.stdout.read() == b"two\n"
        assert process.wait(30) == 0


def test_a_reader_that_has_enough_ends_the_command(keep: Keep, task: Task) -> None:
    with subprocess.Popen(
        [SCRIPT, "execute", "--keep", keep.path, task.id, "--", "yes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""
    eventually(lambda: not task.state.pending)
    assert types(task.history())[-1] == "CommandFailed"


def test_the_script_keeps_what_a_command_writes_apart_from_its_own_words(keep: Keep, task: Task) -> None:
    answer = run_script("execute", "--json", task.id, "--keep", str(keep.path), "--", "sh", "-c", "echo '{}'; pwd >&2")
    assert (answer.returncode, answer.stderr) == (0, b"")
    assert json.loads(answer.stdout)["stdout"] == "{}\n"
    answer = run_script("execute", task.id, "--keep", str(keep.path), "--", "printf", "%s ", "--json", "--keep", "--")
    assert (answer.returncode, answer.stdout) == (0, b"--json --keep -- ")
