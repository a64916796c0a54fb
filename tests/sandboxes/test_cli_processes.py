"""The command line's verbs for input, scripts, the background and terminals."""

from __future__ import annotations

import base64
import os
import pty
import select
import subprocess
from pathlib import Path

import pytest

from sandkeep.sandboxes import Keep, Task

from .support import SCRIPT, Cli, eventually, run_script

pytestmark = pytest.mark.engine


@pytest.fixture
def task_id(keep: Keep, task: Task) -> str:
    """The id of a task in `keep`, which is closed so that the command line can open it."""
    keep.close()
    return task.id


def test_input_comes_from_a_file_or_from_ours(keep: Keep, task_id: str, cli: Cli, tmp_path: Path) -> None:
    data = bytes(range(256)) * 3000
    (tmp_path / "data").write_bytes(data)
    assert cli("execute", task_id, "--stdin", str(tmp_path / "data"), "--", "cat").stdout == data
    answer = run_script("execute", task_id, "--keep", str(keep.path), "--stdin", "-", "--", "cat", input=data)
    assert (answer.returncode, answer.stdout) == (0, data)


def test_a_script_is_run_with_its_arguments(task_id: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "script").write_text('echo "$1|$2"; exit 4\n')
    answer = cli("execute", task_id, "--script", str(tmp_path / "script"), "--", "a b", "-c")
    assert (answer.status, answer.stdout) == (4, b"a b|-c\n")
    assert cli("execute", task_id, "--script", str(tmp_path / "script")).stdout == b"|\n"


BAD = {
    "two inputs": (["--stdin", "-", "--script", "x", "--", "sh"], "bad-input"),
    "nothing to run": ([], "bad-input"),
    "input in the background": (["--background", "--stdin", "-", "--", "cat"], "bad-input"),
    "a script in the background": (["--background", "--script", __file__], "bad-input"),
    "a secret in the background": (["--background", "--secret", "HOME", "--", "true"], "bad-input"),
    "no time in the background": (["--background", "--timeout", "0", "--", "true"], "bad-timeout"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_asked_for_is_refused(task_id: str, cli: Cli, case: str) -> None:
    arguments, code = BAD[case]
    before = cli.documents()
    cli("execute", task_id, *arguments).refused(code, 2)
    assert cli.documents() == before


def test_the_background_is_listed_read_waited_for_and_stopped(task_id: str, cli: Cli) -> None:
    line = "echo begun; echo '\x1b[31m' >&2; sleep 1000"
    started = cli("execute", task_id, "--background", "--json", "--", "sh", "-c", line).json
    command = started["command"]
    assert cli("processes", task_id, "--json").json == [started]
    (listed,) = cli("processes", task_id).stdout.decode().splitlines()
    assert listed.startswith(f"{command}  sh -c echo begun")
    assert "\x1b" not in listed
    eventually(lambda: cli("process-output", task_id, command[:4]).stdout == b"begun\n")
    document = cli("process-output", task_id, command, "--stderr", "--after", "1", "--json").json
    assert (base64.b64decode(document["output_base64"]), document["next"]) == (b"[31m\n", 6)
    assert cli("wait-process", task_id, command, "--timeout", "0.1").status == 124
    assert cli("wait-process", task_id, command, "--timeout", "0.1", "--json").json is None
    stopped = cli("stop-process", task_id, command, "--json").json
    assert (stopped["exit_code"], stopped["stdout"]) == (137, "begun\n")
    assert cli("processes", task_id, "--json").json == []
    cli("stop-process", task_id, command).refused("bad-input", 2)
    short = cli("execute", task_id, "--background", "--", "sh", "-c", "exit 5").stdout.decode().strip()
    assert cli("wait-process", task_id, short).status == 5
    assert started["timeout_s"] == 86_400
    brief = cli("execute", task_id, "--background", "--timeout", "0.3", "--json", "--", "sleep", "1000").json
    assert brief["timeout_s"] == 0.3
    ended = cli("wait-process", task_id, brief["command"], "--json").json
    assert (ended["exit_code"], ended["timed_out"]) == (124, True)


def test_a_terminal_is_given_every_key_and_ours_is_as_before(keep: Keep, task_id: str) -> None:
    ours, theirs = pty.openpty()
    before = subprocess.run(["stty", "-g"], stdin=theirs, capture_output=True, check=True).stdout
    line = "stty size; echo $TERM; read a; echo got $a; trap 'echo int; exit 6' INT; echo ready; sleep 1000 & wait"
    command: list[str | Path] = [SCRIPT, "terminal", "--keep", keep.path, task_id, "--", "sh", "-c", line]
    environment = os.environ | {"TERM": "test-term", "LINES": "33", "COLUMNS": "44"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        shown = b""

        def until(text: bytes) -> None:
            nonlocal shown
            while text not in shown:
                assert select.select([ours], [], [], 60)[0], f"{text!r} does not come behind {shown!r}"
                shown += os.read(ours, 4096)

        until(b"33 44\r\n")
        until(b"test-term\r\n")
        os.write(ours, b"hello\r")
        until(b"got hello\r\n")
        until(b"ready")
        os.write(ours, b"\x03")
        until(b"int\r\n")
        assert process.wait(60) == 6
    assert subprocess.run(["stty", "-g"], stdin=theirs, capture_output=True, check=True).stdout == before
    os.close(ours)
    os.close(theirs)
