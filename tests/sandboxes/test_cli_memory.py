"""The command line's verbs for the record of a task, without an engine."""

from __future__ import annotations

import io
import json

import pytest

from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep

from .folders import add, described, folder_of
from .support import Cli

BIG = b"big\xff" * 20_000


@pytest.fixture
def task_id(keep: Keep) -> str:
    """The id of a task with three commands: one that went well, one that failed, and one that could not be run."""
    task = described(keep, title="a \u202etitle")
    blob, size = keep.blobs.put_stream(io.BytesIO(BIG))
    outcomes: list[ev.Outcome] = [
        ev.CommandExecuted("c1", 0, 1_500_000_000, False, ev.Output(4, b"out\n"), ev.Output(4, b"err\n")),
        ev.CommandExecuted("c2", 124, 2_000_000_000, True, ev.Output(size, blob=blob), ev.Output(0, b"")),
        ev.CommandFailed("c3", "interrupted", "it \x1b ended"),
    ]
    for number, outcome in enumerate(outcomes, 1):
        asked = ev.CommandRequested(f"c{number}", ("echo", "a b", "\x1b[31m"), "/workspace", ("A",), 5 * 10**9)
        add(keep, task.id, asked, outcome)
    task.rebuild_memory()
    keep.close()
    return task.id


def test_runs_are_listed_in_documents(cli: Cli, task_id: str) -> None:
    first, second, third = cli("task-executions", task_id, "--json").json
    assert {"number": 1, "exit_code": 0, "duration_s": 1.5, "timeout_s": 5.0, "error": None}.items() <= first.items()
    assert (first["argv"], first["cwd"], first["env"]) == (["echo", "a b", "\x1b[31m"], "/workspace", ["A"])
    assert (first["stdout_bytes"], first["stdout_blob"], first["stderr_bytes"]) == (4, None, 4)
    assert (second["timed_out"], second["stdout_bytes"], len(second["stdout_blob"])) == (True, len(BIG), 64)
    assert third["error"] == {"code": "interrupted", "message": "it \x1b ended"}
    assert (third["exit_code"], third["stdout_bytes"], third["duration_s"]) == (None, None, None)
    assert [each["number"] for each in cli("task-executions", task_id, "--failed", "--json").json] == [2, 3]
    assert [each["number"] for each in cli("task-executions", task_id, "--last", "1", "--json").json] == [3]


def test_runs_are_listed_in_words(cli: Cli, task_id: str) -> None:
    answer = cli("task-executions", task_id[:6])
    heading, first, second, third = answer.stdout.decode().splitlines()
    assert heading.split() == ["RUN", "BEGUN", "EXIT", "TOOK", "STDOUT", "STDERR", "COMMAND"]
    assert first.split()[3:] == ["0", "1.5s", "4B", "4B", "echo", "'a", "b'", "'\\x1b[31m'"]
    assert "124 (time was up)" in second
    assert "interrupted" in third
    assert b"\x1b" not in answer.stdout


def test_what_a_run_wrote_is_shown_where_it_wrote_it(cli: Cli, task_id: str) -> None:
    answer = cli("task-executions", task_id, "--output", "1")
    assert (answer.status, answer.stdout, answer.stderr) == (0, b"out\n", b"err\n")
    assert cli("task-executions", task_id, "--output", "2").stdout == BIG
    document = cli("task-executions", task_id, "--output", "1", "--json").json
    assert document == {
        "command": "c1",
        "exit_code": 0,
        "duration_s": 1.5,
        "timed_out": False,
        "oom_killed": False,
        "stdout": "out\n",
        "stdout_bytes": 4,
        "stdout_blob": None,
        "stdout_truncated": False,
        "stderr": "err\n",
        "stderr_bytes": 4,
        "stderr_blob": None,
        "stderr_truncated": False,
    }


def test_a_run_without_output_says_why(cli: Cli, task_id: str) -> None:
    answer = cli("task-executions", task_id, "--output", "3")
    assert (answer.status, answer.stdout) == (0, b"")
    assert answer.stderr == b"sandkeep: run 3 has no output: it \\x1b ended\n"
    assert cli("task-executions", task_id, "--output", "3", "--json").json["error"]["code"] == "interrupted"
    assert cli("task-executions", task_id, "--output", "4").refused("bad-input", 2)


def test_a_decision_is_recorded_and_shown(cli: Cli, task_id: str) -> None:
    made = cli("record-decision", task_id, "Use LMDB", "--reason", "quick", "--alternative", "x", "--json").json
    assert (made["number"], made["text"], made["reason"], made["alternatives"]) == (1, "Use LMDB", "quick", ["x"])
    assert cli("task-decisions", task_id, "--json").json == [made]
    assert cli("record-decision", task_id, "right to left: \u202e").stdout.startswith(b"decision 2, at position ")
    shown = cli("task-decisions", task_id).stdout.decode()
    assert shown.splitlines()[0] == "1. Use LMDB"
    assert "   because: quick\n   instead of: x\n2. right to left: \\u202e\n" in shown
    assert [each["number"] for each in cli("task-decisions", task_id, "--last", "1", "--json").json] == [2]
    assert cli("record-decision", task_id, " ").refused("bad-input", 2)
    assert cli("record-decision", "f" * 12, "x").refused("task-not-found", 2)


def test_the_numbers_of_a_task(cli: Cli, task_id: str) -> None:
    assert cli("task-stats", task_id, "--json").json == {
        "task": task_id,
        "state": "created",
        "events": 8,
        "executions": 3,
        "failures": 2,
        "timed_out": 1,
        "running_s": 3.5,
        "output_bytes": 8 + len(BIG),
        "checkpoints": 0,
        "restores": 0,
        "decisions": 0,
        "memory_peak": 0,
        "pids_peak": 0,
        "cpu_s": 0.0,
        "throttled_s": 0.0,
        "oom_kills": 0,
    }
    shown = cli("task-stats", task_id).stdout.decode()
    assert "3, of which failed 2, 1 because their time was up" in shown
    assert "3.5s" in shown
    assert "used  at most 0B of memory and 0 processes; 0.0 s of processors" in shown


def test_the_history_comes_in_pages(cli: Cli, task_id: str) -> None:
    everything = cli("task-history", task_id, "--json").json
    assert [record["revision"] for record in everything] == list(range(1, 9))
    page = cli("task-history", task_id, "--limit", "3", "--json").json
    rest = cli("task-history", task_id, "--after", str(page[-1]["revision"]), "--json").json
    assert page + rest == everything
    failed = cli("task-history", task_id, "--type", "CommandFailed", "--type", "TaskCreated", "--json").json
    assert [record["type"] for record in failed] == ["TaskCreated", "CommandFailed"]
    assert cli("task-history", task_id, "--last", "2", "--json").json == everything[-2:]
    assert len(cli("task-history", task_id, "--last", "2").stdout.splitlines()) == 2


def test_a_memory_that_was_edited_is_reported(cli: Cli, task_id: str) -> None:
    answer = cli("rebuild-memory", task_id)
    assert (answer.status, answer.stderr) == (0, b"")
    assert answer.stdout.startswith(f"made the memory of task {task_id} anew, up to revision 8, ".encode())
    state = cli.keep / "tasks" / task_id / "memory" / "state.json"
    good = state.read_bytes()
    state.write_bytes(good.replace(b'"failures": 2', b'"failures": 0'))
    found = cli("verify", "--json")
    assert found.status == 1
    assert found.json["damage"] == [f"memory: task {task_id}: state.json is not what was written"]
    answer = cli("rebuild-memory", task_id)
    assert answer.status == 1
    damaged, kept, made = answer.stdout.decode().splitlines()
    assert damaged == "damaged: state.json is not what was written"
    assert b'"failures": 0' in (cli.keep / kept.removeprefix("what was there is in ") / "state.json").read_bytes()
    assert "up to revision 9, " in made
    assert cli("verify", "--json").json["ok"]
    answer = cli("rebuild-memory", task_id, "--json")
    assert (answer.json["ok"], answer.json["damage"], answer.json["quarantine"]) == (True, [], None)
    assert cli("task-history", task_id, "--type", "MemoryRepaired", "--json").json[0]["data"]["damage"] == [
        "state.json is not what was written"
    ]


def test_a_task_without_a_folder_has_no_memory_to_rebuild(cli: Cli, task_id: str) -> None:
    (cli.keep / "tasks" / task_id).rename(cli.keep / "tasks" / "away")
    assert "has no memory folder" in cli("rebuild-memory", task_id).refused("memory-unavailable", 1)


def test_a_verb_that_finds_an_edited_page_says_so(cli: Cli, task_id: str, caplog: pytest.LogCaptureFixture) -> None:
    (cli.keep / "tasks" / task_id / "memory" / "log.jsonl").write_text("edited")
    assert cli("record-decision", task_id, "x").status == 0
    assert "was made anew: log.jsonl is not what was written" in caplog.text
    with Keep.open(cli.keep) as keep:
        lines = (folder_of(keep.task(task_id)) / "log.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["type"] for line in lines][-2:] == ["DecisionRecorded", "MemoryRepaired"]
