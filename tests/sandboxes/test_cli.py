"""The command line without an engine: what it prints, its exit statuses, and what it says of bad input."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep

from .support import SCRIPT, Cli, eventually, run_script

UNKNOWN = "0" * 12


@pytest.fixture
def made(keep: Keep) -> Keep:
    """`keep`, closed, so that the command line can open it."""
    keep.close()
    return keep


@pytest.fixture
def described(keep: Keep) -> str:
    """The id of a task that only stands in the log of `keep`, which is closed."""
    task = "0123456789ab"
    keep.log.append(f"task/{task}", [ev.TaskCreated("i1", "a\u202etitle", None, "image")], actor="tester")
    keep.log.append(f"task/{task}", [ev.WorkspacePrepared("i1", None)], actor="tester")
    keep.log.append(f"task/{task}", [ev.CheckpointCreated("c" * 12, "d" * 64, 1, 2, "label")], actor="tester")
    keep.close()
    return task


# ---- verbs


def test_init_makes_a_keep(cli: Cli) -> None:
    answer = cli("init", "--json")
    assert (answer.status, answer.stderr) == (0, b"")
    assert answer.json["keep"] == str(cli.keep)
    assert answer.json["format"] == 1
    assert (cli.keep / "keep.toml").exists()
    assert cli("init").refused("keep-exists", 1)


def test_init_says_where_the_keep_is(cli: Cli, tmp_path: Path) -> None:
    answer = cli("init", "--keep", str(tmp_path / "other"))
    assert (answer.status, answer.stdout) == (0, f"made a keep in {tmp_path / 'other'}\n".encode())


def test_there_are_no_tasks_at_first(made: Keep, cli: Cli) -> None:
    assert cli("list-tasks", "--json").json == {"tasks": [], "next": None}
    assert b"no tasks yet" in cli("list-tasks").stdout


def test_a_task_is_listed_and_shown(described: str, cli: Cli) -> None:
    (listed,) = cli("list-tasks", "--json").json["tasks"]
    expected = {"id": described, "state": "created", "title": "a\u202etitle", "pending": [], "image": "image"}
    assert expected.items() <= listed.items()
    counts = {"events": 3, "executions": 0, "failures": 0, "checkpoints": 1, "output_bytes": 0, "cpu_s": 0.0}
    assert listed["counts"] == counts
    shown = cli("show-task", described[:4], "--json").json
    assert listed.items() <= shown.items()
    assert (shown["workspace"], shown["idle"], shown["disk"], shown["caches"]) == (None, False, None, [])
    (checkpoint,) = shown["checkpoints"]
    assert {"id": "c" * 12, "digest": "d" * 64, "files": 1, "bytes": 2, "label": "label"}.items() <= checkpoint.items()
    for arguments in (["list-tasks"], ["list-tasks", "--state", "created"], ["show-task", described]):
        answer = cli(*arguments)
        assert described.encode() in answer.stdout
        assert b"a\\u202etitle" in answer.stdout
    assert cli("list-tasks", "--state", "active", "--state", "paused", "--json").json["tasks"] == []


def test_the_history_of_a_task_is_shown(described: str, cli: Cli) -> None:
    history = cli("task-history", described, "--json").json
    assert [record["type"] for record in history] == ["TaskCreated", "WorkspacePrepared", "CheckpointCreated"]
    assert [record["revision"] for record in history] == [1, 2, 3]
    assert history[0]["data"]["title"] == "a\u202etitle"
    lines = cli("task-history", described).stdout.decode().splitlines()
    assert [line.split()[3] for line in lines] == [record["type"] for record in history]


def test_events_are_documents_a_line(described: str, cli: Cli) -> None:
    assert [record["position"] for record in cli.documents()] == [1, 2, 3, 4]
    answer = cli("events", "--json", "--after", "3")
    assert answer.json["type"] == "CheckpointCreated"
    assert len(cli("events").stdout.splitlines()) == 4
    assert cli("events", "--after", "99").stdout == b""


def test_help_is_given_when_asked_for_and_when_nothing_is_said(cli: Cli) -> None:
    verbs = "init create-task list-tasks show-task execute checkpoint restore-checkpoint task-history complete-task"
    for arguments in ([], ["--help"]):
        answer = cli(*arguments)
        assert (answer.status, answer.stderr) == (0, b"")
        assert all(verb.encode() in answer.stdout for verb in f"{verbs} cleanup-task verify replay events".split())
    for verb in verbs.split():
        assert b"--keep" in cli(verb, "--help").stdout


# ---- bad input


def test_the_journal_of_another_keep_is_refused_and_nothing_is_written(
    made: Keep, cli: Cli, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other") / "keep"
    Keep.init(other, actor="tester").close()
    made.close()
    (foreign,) = (other / "journal").glob("*.jsonl")
    foreign.replace(made.path / "journal" / foreign.name)
    files = {path: path.read_bytes() for path in made.path.rglob("*") if path.is_file() and path.name != "lock.mdb"}
    for verb in (["create-task", "t"], ["list-tasks"], ["events"]):
        assert "is the journal of another log" in cli(*verb).refused("log-damaged", 1)
    assert {path: path.read_bytes() for path in files} == files
    answer = cli("recover", "--json")
    assert (answer.status, json.loads(answer.stdout)["ok"]) == (0, True)
    answer = cli("verify", "--deep", "--json")
    assert answer.status == 0, answer.stdout


BAD = {
    "an unknown task": (["show-task", UNKNOWN], "task-not-found", 2),
    "a prefix too short": (["show-task", "012"], "task-not-found", 2),
    "no id": (["task-history", "../x"], "bad-id", 2),
    "an id that is no text": (["show-task", "\udcff"], "bad-id", 2),
    "a command in an unknown task": (["execute", UNKNOWN, "--", "true"], "task-not-found", 2),
    "a checkpoint of an unknown task": (["checkpoint", UNKNOWN], "task-not-found", 2),
    "an unknown checkpoint": (["restore-checkpoint", "0123456789ab", UNKNOWN], "checkpoint-not-found", 2),
    "no checkpoint id": (["restore-checkpoint", "0123456789ab", "x"], "bad-id", 2),
    "a checkpoint whose blobs are gone": (["restore-checkpoint", "0123456789ab", "cccc"], "blob-missing", 1),
    "the end of an unknown task": (["complete-task", UNKNOWN], "task-not-found", 2),
    "the cleanup of an unknown task": (["cleanup-task", UNKNOWN], "task-not-found", 2),
    "a path outside": (["execute", "0123456789ab", "--cwd", "../x", "--", "true"], "outside-workspace", 2),
    "a timeout of zero": (["execute", "0123456789ab", "--timeout", "0", "--", "true"], "bad-timeout", 2),
    "a timeout of no number": (["execute", "0123456789ab", "--timeout", "nan", "--", "true"], "bad-timeout", 2),
    "a variable without value": (["execute", "0123456789ab", "--env", "A", "--", "true"], "bad-input", 2),
    "a variable without name": (["execute", "0123456789ab", "--env", "=x", "--", "true"], "bad-input", 2),
    "an empty command": (["execute", "0123456789ab", "--", ""], "bad-input", 2),
    "a label with a line break": (["checkpoint", "0123456789ab", "--label", "a\nb"], "bad-input", 2),
    "an empty title": (["create-task", " "], "bad-input", 2),
    "a title that is no text": (["create-task", "\udcff"], "bad-input", 2),
    "a source that is no repository": (["create-task", "t", "--source", "/usr"], "not-a-repository", 2),
    "a source that is not there": (["create-task", "t", "--source", "/nowhere"], "not-a-repository", 2),
    "a source that is no text": (["create-task", "t", "--source", "/\udcff"], "not-a-repository", 2),
    "an unknown verb": (["bogus"], "bad-usage", 2),
    "an unknown option": (["list-tasks", "--bogus"], "bad-usage", 2),
    "a missing argument": (["checkpoint"], "bad-usage", 2),
    "an extra argument": (["list-tasks", "x"], "bad-usage", 2),
    "a state that is none": (["list-tasks", "--state", "bogus"], "bad-usage", 2),
    "a timeout that is no number": (["execute", "x", "--timeout", "soon", "--", "true"], "bad-usage", 2),
    "a position before all": (["events", "--after", "-1"], "bad-usage", 2),
    "a position beyond all numbers": (["events", "--after", "99999999999999999999"], "bad-input", 2),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_with_a_stable_code(described: str, cli: Cli, case: str) -> None:
    arguments, code, status = BAD[case]
    before = cli.documents()
    answer = cli(*arguments)
    message = answer.refused(code, status)
    assert answer.stdout == b""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    answer = cli(*arguments[:split], "--json", *arguments[split:])
    assert answer.refused(code, status) == message
    assert answer.json["error"]["code"] == code
    assert set(answer.json) == {"error"}
    assert cli.documents() == before


@pytest.mark.parametrize("verb", ["list-tasks", "verify", "replay", "events", "create-task t", f"show-task {UNKNOWN}"])
def test_a_keep_that_is_not_there_or_of_another_format_is_refused(
    made: Keep, cli: Cli, tmp_path: Path, verb: str
) -> None:
    cli(*verb.split(), "--keep", str(tmp_path / "nothing")).refused("keep-not-found", 2)
    assert not (tmp_path / "nothing").exists()
    file = made.path / "keep.toml"
    file.write_text(file.read_text().replace("format = 1", "format = 9"))
    assert "has format 9" in cli(*verb.split()).refused("keep-format", 1)
    file.write_text("?")
    assert "is damaged" in cli(*verb.split()).refused("keep-format", 1)


@pytest.mark.parametrize("host", ["unix:///nonexistent.sock", "tcp://127.0.0.1:1", "garbage"])
def test_an_engine_that_does_not_answer_leaves_no_half_made_task(
    made: Keep, cli: Cli, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    answer = cli("create-task", "t", "--image", "debian:trixie", "--json")
    assert "no Docker engine answers" in answer.refused("engine-unreachable", 1)
    assert answer.json["error"]["code"] == "engine-unreachable"
    assert len(cli.documents()) == 1
    assert list(made.path.glob("tasks/*")) == []
    task = cli("create-task", "without an image of its own", "--json").json["id"]
    assert "no Docker engine answers" in cli("execute", task, "--", "true").refused("engine-unreachable", 1)


def test_what_the_operating_system_refuses_is_one_line(made: Keep, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: object, **options: object) -> Keep:
        raise PermissionError(13, "Permission denied", "/a/path")

    monkeypatch.setattr(Keep, "open", failing)
    assert "Permission denied (/a/path)" in cli("list-tasks").refused("os-error", 1)


def test_two_processes_may_read_at_once(keep: Keep) -> None:
    answer = run_script("list-tasks", "--json", "--keep", str(keep.path))
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, b'{"tasks":[],"next":null}\n', b"")


# ---- the script itself


def test_the_script_reports_errors_as_its_exit_status(made: Keep) -> None:
    answer = run_script("show-task", UNKNOWN, "--json", env=os.environ | {"SANDKEEP_KEEP": str(made.path)})
    assert answer.returncode == 2
    assert json.loads(answer.stdout)["error"]["code"] == "task-not-found"
    assert answer.stderr.count(b"\n") == 1


def test_names_that_are_no_text_are_no_traceback(made: Keep, tmp_path: Path) -> None:
    for arguments in ([b"create-task", b"t", b"--source", b"/\xff"], [b"show-task", b"\xff"]):
        answer = run_script(*arguments, b"--json", b"--keep", os.fsencode(made.path))
        assert answer.returncode == 2
        assert json.loads(answer.stdout)["error"]["code"] in ("not-a-repository", "bad-id")
        assert b"Traceback" not in answer.stderr
    answer = run_script(b"init", b"--json", b"--keep", os.fsencode(tmp_path) + b"/\xff")
    assert answer.returncode == 2
    assert b"Traceback" not in answer.stderr


def test_a_reader_that_has_enough_is_no_error(made: Keep) -> None:
    with Keep.open(made.path) as opened:
        for _ in range(10):
            opened.log.append("keep", [ev.TaskCompleted("x" * 100)] * 200, actor="tester")
    command: list[str | Path] = [SCRIPT, "events", "--keep", made.path]
    for more in ([], ["--json"]):
        with subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(30) == 0


@contextlib.contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Kill `process` if it still runs at the end, which would be waited for."""
    try:
        yield
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_following_shows_what_others_do_until_it_is_interrupted(keep: Keep, number: signal.Signals) -> None:
    command: list[str | Path] = [SCRIPT, "events", "--follow", "--json", "--keep", keep.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process, ended(process):
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["type"] == "KeepCreated"
        keep.log.append("keep", [ev.TaskCompleted("from another process")], actor="other")
        found = json.loads(process.stdout.readline())
        assert (found["position"], found["actor"]) == (2, "other")
        assert found["data"] == {"summary": "from another process"}
        process.send_signal(number)
        assert process.wait(30) == 130
        assert process.stdout.read() == b""
        assert process.stderr.read() == b""


def test_following_from_a_position_shows_only_what_comes_after(keep: Keep) -> None:
    command: list[str | Path] = [SCRIPT, "events", "--follow", "--after", "1", "--keep", keep.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, ended(process):
        assert process.stdout is not None
        keep.log.append("keep", [ev.TaskCompleted("after")], actor="other")
        assert "summary=after" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert eventually(lambda: process.poll() is not None)
        assert process.returncode == 130
