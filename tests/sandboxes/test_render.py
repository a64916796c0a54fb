"""What is shown is harmless on a terminal and exact for machines."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import msgspec
import pytest

from sandkeep.events import BlobStore, Record
from sandkeep.events import catalogue as ev
from sandkeep.projections import Checkpoint, Pending, TaskState
from sandkeep.projections.registry import Task
from sandkeep.sandboxes import (
    Result,
    documents,
    documents_record,
    execution,
    mcp_text,
    render,
    show_record,
    show_tasks,
    verbs_output,
)
from sandkeep.sandboxes.text import moment

EVIL = "\x1b[31m\u202e\x00[bold]x[/bold]"


def a_task(**fields: object) -> Task:
    task = Task("0123456789ab", EVIL, TaskState.FAILED, EVIL, EVIL, 10**18, 1, 10**18, 1, EVIL, "c" * 64, EVIL)
    pending = (Pending("i" * 16, "CommandRequested", 7, 10**18),)
    return msgspec.structs.replace(task, pending=pending, **fields)


def shown(capfdbinary: pytest.CaptureFixture[bytes]) -> str:
    text = capfdbinary.readouterr().out.decode()
    assert not set(text) & {"\x1b", "\0", "\u202e"}
    return text


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("ünï", "ünï"),
        ("a\nb\t", "a\\nb\\t"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\udcff", "\\udcff"),
        ("\u202e", "\\u202e"),
        ("[red]", "[red]"),
    ],
)
def test_foreign_text_is_harmless_and_complete(text: str, plain: str) -> None:
    assert str(render.plain(text)) == plain


@pytest.mark.parametrize(
    ("time_ns", "expected"),
    [(0, "1970-01-01T00:00:00Z"), (1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456Z"), (10**9 + 999, None)],
)
def test_a_moment_is_in_utc_to_the_microsecond(time_ns: int, expected: str | None) -> None:
    assert moment(time_ns) == (expected or "1970-01-01T00:00:01Z")


def test_tables_hold_everything_and_no_control_characters(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    show_tasks.table([documents.task(a_task())])
    text = shown(capfdbinary)
    assert "0123456789ab" in text
    assert "failed" in text
    assert "[bold]x[/bold]" in text
    checkpoint = Checkpoint("c" * 12, "0123456789ab", "d" * 64, 3, 4, EVIL, ("a", "b"), 5, 10**18)
    shown_task = documents.shown_task(
        a_task(), workspace=EVIL, checkpoints=[checkpoint], origin=None, own=(), disk=None, caches=()
    )
    show_tasks.task(shown_task, {})
    text = shown(capfdbinary)
    assert "CommandRequested since 2001-09-09" in text
    assert "2 torn" in text
    show_tasks.table([])
    assert "no tasks yet" in shown(capfdbinary)


def record(event: msgspec.Struct) -> Record:
    data = msgspec.Raw(msgspec.msgpack.encode(event))
    return Record(9, "task/x", 2, 10**18, "me", None, None, type(event).__name__, 1, data)


@pytest.mark.parametrize(
    ("event", "summary"),
    [
        (ev.CommandRequested("i", ("sh", "-c", "a b"), "/workspace", (), 1_500_000_000), "argv=sh -c a b"),
        (
            ev.CommandExecuted("i", 0, 10**9, False, ev.Output(5, b"12345"), ev.Output(0, b"")),
            "exit_code=0",
        ),
        (ev.SandboxStarted("i", "c" * 64), "container=cccccccccccc"),
        (ev.SandboxRequested("i", "sha256:" + "a" * 64, ev.Limits(1, 1, 1, 1)), "image=aaaaaaaaaaaa"),
        (ev.TaskFailed("r" * 100), "reason=" + "r" * 59 + "…"),
        (ev.TaskCompleted(""), ""),
        (ev.KeepCreated(1, b"x" * 32), "format=1"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_record_is_summed_up_on_one_line(event: msgspec.Struct, summary: str) -> None:
    assert render.summary(event).startswith(summary)
    assert "\n" not in render.summary(event)


def test_records_are_lines_that_machines_can_cut(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    records = [record(ev.TaskFailed(EVIL)), record(ev.CommandRequested("i", ("x" * 300,), "/", (), 1))]
    show_record.history([documents_record.history_record(each, abandoned=False) for each in records], {})
    lines = shown(capfdbinary).splitlines()
    assert len(lines) == 2
    assert lines[0].split()[0] == "9"
    assert lines[0].split()[2:4] == ["task/x", "TaskFailed"]


def result(stdout: ev.Output) -> Result:
    return Result("c", 0, 0.1234567890, False, stdout, ev.Output(0, b""))


def test_output_that_is_no_text_is_exact_in_base64(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    document = json.loads(msgspec.json.encode(documents.ran(result(ev.Output(3, b"\xffab")), blobs)))
    assert document["stdout"] == "\ufffdab"
    assert document["stdout_base64"] == "/2Fi"
    assert "stderr_base64" not in document
    assert document["duration_s"] == 0.123457


def test_a_document_holds_only_so_much_of_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "OUTPUT_BYTES", 5)
    blobs = BlobStore(tmp_path)
    digest = blobs.put(b"0123456789")
    document = documents.ran(result(ev.Output(10, None, digest)), blobs)
    assert (document.stdout, document.stdout_blob) == ("01234", digest)
    assert (document.stdout_bytes, document.stdout_truncated) == (10, True)


def test_text_cut_within_a_character_is_still_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "OUTPUT_BYTES", 5)
    blobs = BlobStore(tmp_path)
    digest = blobs.put("äääää".encode())
    document = documents.ran(result(ev.Output(10, None, digest)), blobs)
    assert document.stdout.startswith("ää")
    assert document.stdout_truncated


def test_a_model_is_told_the_byte_at_which_output_goes_on() -> None:
    raw = b"\xff" * 20_000
    document = {"command": "c", "stdout": raw.decode("utf-8", "replace"), "stdout_bytes": len(raw)}
    shown = mcp_text.shown(document | {"stdout_base64": base64.b64encode(raw).decode()})
    assert f"offset {mcp_text.HEAD} goes on" in shown["stdout"]


def test_a_part_of_output_ends_with_a_whole_character(tmp_path: Path) -> None:
    raw, whole = "aäö€".encode() * 3, ""
    at: int | None = 0
    output, blobs = ev.Output(len(raw), raw), BlobStore(tmp_path)
    while at is not None:
        data = execution.part(output, blobs, at, 4)
        shown = verbs_output._part("t", "c", "stdout", at, data, len(raw), False)
        whole, at = whole + shown.text, shown.next
    assert whole == raw.decode()


def test_progress_is_quiet_at_first_and_goes_to_standard_error(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with render.progress() as say:
        say("soon")
        monkeypatch.setattr(render, "_PATIENCE_SECONDS", 0.0)
        say(f"later {EVIL}")
        say("counted 17")
    stdout, stderr = capfdbinary.readouterr()
    assert stdout == b""
    lines = stderr.decode().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("later \\x1b")
