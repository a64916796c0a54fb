"""The pages of a memory folder, as functions of a stream: what they hold, and that hostile text stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import Event, UnknownEvent
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import pages
from sandkeep.sandboxes.pages import Recall, advance, claimed, markdown, plan_page, state_page

from ..events import strategies
from ..projections.support import records

TASK = "0123456789ab"
HOSTILE = "a\x1b[31m\u202e\u2028\x00\x7f\x9b<script>`*_[x](y)|#"
STREAM: list[Event] = [
    ev.TaskCreated("i1", "A *title*", "/source", "base"),
    ev.WorkspacePrepared("i1", "c0ffee"),
    ev.SandboxStarted("i2", "f" * 64),
    ev.CommandRequested("i3", ("printf", "a\x1bb"), "/workspace", ("A",), 5),
    ev.CommandExecuted("i3", 3, 1_500_000_000, False, ev.Output(4, b"a\x1b\xffb"), ev.Output(9, blob="b" * 64)),
    ev.DecisionRecorded("# Use LMDB", "1. it is quick", ("- files", "SQLite")),
]


def written(events: Iterable[Event]) -> tuple[Recall, bytes, bytes]:
    """What the pages hold after `events`, the log and the decisions."""
    recall, log, decisions = Recall(TASK), b"", b""
    for record in records((f"task/{TASK}", event) for event in events):
        recall, line, section = advance(recall, record)
        log, decisions = log + line, decisions + section
    return recall, log, decisions


def test_the_pages_are_what_this_format_says() -> None:
    """A change of any of these needs another `FORMAT`: folders in the old one would pass for damaged."""
    recall, log, decisions = written(STREAM)
    assert pages.FORMAT == 4
    assert log.splitlines()[3:5] == [
        b'{"revision":4,"position":4,"time":"1970-01-01T00:00:00Z","actor":"me","cause":null,"type":"CommandRequested",'
        b'"data":{"intent":"i3","argv":["printf","a\\u001bb"],"cwd":"/workspace","env":["A"],"timeout_ns":5,'
        b'"secrets":[],"stdin":null,"background":false,"terminal":false}}',
        b'{"revision":5,"position":5,"time":"1970-01-01T00:00:00Z","actor":"me","cause":null,"type":"CommandExecuted",'
        b'"data":{"intent":"i3","exit_code":3,"duration_ns":1500000000,"timed_out":false,'
        b'"stdout":{"size":4,"data":"a\\u001b\xef\xbf\xbdb","blob":null,"truncated":false},'
        b'"stderr":{"size":9,"data":null,"blob":"' + b"b" * 64 + b'","truncated":false},"cpu_ns":0,'
        b'"oom_killed":false,"reason":""}}',
    ]
    assert decisions.decode() == (
        "# Decisions\n"
        "\n"
        "Made from the record of task `0123456789ab`, oldest first.\n"
        "\n"
        "## 1. \\# Use LMDB\n"
        "\n"
        "1970-01-01T00:00:00Z, by me, at position 6.\n"
        "\n"
        "Because: 1\\. it is quick\n"
        "\n"
        "Instead of:\n"
        "\n"
        "- \\- files\n"
        "- SQLite\n"
    )
    assert plan_page(recall).decode() == (
        "# A \\*title\\*\n"
        "\n"
        "Task `0123456789ab`, created 1970-01-01T00:00:00Z. This page follows its\n"
        "record until somebody edits it; from then on it is left as it is.\n"
        "\n"
        "## Progress\n"
        "\n"
        "- [x] the workspace is prepared\n"
        "- [x] the sandbox has started\n"
        "- [ ] a checkpoint is taken\n"
        "- [ ] the task is completed\n"
        "\n"
        "## Decided\n"
        "\n"
        "- \\# Use LMDB\n"
    )
    document = json.loads(state_page(recall))
    assert " ".join(document) == (
        "format task title state source commit image container reason created updated tags went_back forked_from"
        " pending stats revision position log.jsonl decisions.md digest"
    )
    assert (document["title"], document["state"], document["commit"]) == ("A *title*", "active", "c0ffee")
    assert document["stats"] == {
        "events": 6,
        "executions": 1,
        "failures": 1,
        "timed_out": 0,
        "running_s": 1.5,
        "output_bytes": 13,
        "checkpoints": 0,
        "restores": 0,
        "decisions": 1,
    }
    assert document["digest"] == "88de145a1d1a5559ff3310bb85ddcad48df31612cd4a928174dda1e5e9691813"


def test_the_state_says_how_far_the_other_pages_go() -> None:
    recall, log, decisions = written(STREAM)
    document = json.loads(state_page(recall))
    digest = ""
    for line in log.splitlines(keepends=True):
        digest = blake3(digest.encode() + line).hexdigest()
    assert document["log.jsonl"] == {"pieces": 6, "bytes": len(log), "digest": digest}
    heading, section = decisions.split(b"\n\n## ", 1)
    first = blake3(heading + b"\n").hexdigest()
    digest = blake3(first.encode() + b"\n## " + section).hexdigest()
    assert document["decisions.md"] == {"pieces": 2, "bytes": len(decisions), "digest": digest}
    assert (document["revision"], document["position"]) == (6, 6)


def test_what_is_under_way_is_told() -> None:
    recall, *_ = written([*STREAM, ev.CommandRequested("i4", ("x",), "/", (), 1)])
    assert json.loads(state_page(recall))["pending"][-1] == {
        "kind": "CommandRequested",
        "since": "1970-01-01T00:00:00Z",
    }


def test_a_state_vouches_for_itself() -> None:
    page = state_page(written(STREAM)[0])
    assert claimed(page) == (pages.FORMAT, 6)
    for place in range(len(page)):
        assert claimed(page[:place] + bytes([page[place] ^ 1]) + page[place + 1 :]) is None
        assert claimed(page[:place]) is None
    assert claimed(page + b"\n") is None


BODIES = {
    "no number": b'{"format":"1","revision":1,',
    "no format": b'{"revision":1,',
    "no JSON": b"[",
    "no end": b"[" * 100_000,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_what_has_a_right_digest_and_is_no_state_claims_nothing(body: bytes) -> None:
    head = body + b'\n  "digest": "'
    page = head + blake3(head + b'"\n}\n').hexdigest().encode() + b'"\n}\n'
    assert claimed(page) is None


def test_a_task_that_ended_says_so_in_the_plan() -> None:
    ended = written([*STREAM, ev.CheckpointCreated("c", "d", 1, 1, ""), ev.TaskFailed("*no*"), ev.TaskCleaned("i")])[0]
    assert (
        "- [x] a checkpoint is taken\n- [ ] the task is completed\n\nGiven up: \\*no\\*\n" in plan_page(ended).decode()
    )
    unexplained = written([*STREAM, ev.TaskFailed("")])[0]
    assert "Given up: no reason was given\n" in plan_page(unexplained).decode()
    done = written([*STREAM, ev.TaskCompleted("s"), ev.TaskCleaned("i")])[0]
    assert "- [x] the task is completed\n" in plan_page(done).decode()
    assert "Given up" not in plan_page(done).decode()


def test_the_plan_holds_the_last_decisions_only() -> None:
    recall = written([STREAM[0], *(ev.DecisionRecorded(f"d{number}") for number in range(12))])[0]
    assert plan_page(recall).decode().endswith("- d2\n" + "".join(f"- d{number}\n" for number in range(3, 12)))


def test_long_output_is_cut_and_other_text_is_not() -> None:
    long = ev.CommandExecuted("i", 0, 1, False, ev.Output(16_000, b"x" * 16_000), ev.Output(0, b""))
    reason = "r" * 5000
    _, log, _ = written([STREAM[0], long, ev.TaskFailed(reason)])
    lines = [json.loads(line) for line in log.splitlines()]
    assert lines[1]["data"]["stdout"]["data"] == "x" * 999 + "…"
    assert lines[2]["data"]["reason"] == reason


def test_what_a_later_library_wrote_has_a_line() -> None:
    recall, log, _ = written([STREAM[0], UnknownEvent("Teleported", 2, b"\x81\xa1a\x01")])
    assert json.loads(log.splitlines()[1])["type"] == "Teleported"
    assert recall.revision == 2


def test_hostile_text_is_escaped_in_every_page() -> None:
    recall, log, decisions = written(
        [
            ev.TaskCreated("i", HOSTILE, HOSTILE, HOSTILE),
            ev.CommandRequested("j", (HOSTILE,), HOSTILE, (HOSTILE,), 1),
            ev.CommandExecuted("j", 0, 1, False, ev.Output(9, HOSTILE.encode()), ev.Output(9, HOSTILE.encode())),
            ev.DecisionRecorded(HOSTILE, HOSTILE, (HOSTILE,)),
            ev.TaskFailed(HOSTILE),
        ]
    )
    for page in (state_page(recall), plan_page(recall), log, decisions):
        assert all(character.isprintable() or character == "\n" for character in page.decode())
    assert [json.loads(line)["data"] for line in log.splitlines()][1]["argv"] == [HOSTILE]
    assert json.loads(state_page(recall))["title"] == HOSTILE
    for page in (plan_page(recall), decisions):
        assert b"<script>" not in page.replace(b"\\<", b"")
        assert b"](y)" not in page.replace(b"\\]", b"")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain words, and more: yes (or no).", "plain words, and more: yes (or no)."),
        ("- item", "\\- item"),
        ("+ item", "\\+ item"),
        ("=====", "\\====="),
        ("12) item", "12\\) item"),
        ("1.5 s", "1\\.5 s"),
        ("a - b", "a - b"),
        ("`x` & <b>", "\\`x\\` \\& \\<b\\>"),
        ("   indented", "indented"),
        ("\x1b", "\\\\x1b"),
        ("![x](http://y)", "\\!\\[x\\](http://y)"),
    ],
)
def test_markdown_is_taken_out_of_text(text: str, expected: str) -> None:
    assert markdown(text) == expected


@given(st.lists(strategies.events(), max_size=15))
def test_any_stream_has_pages(events: list[Event]) -> None:
    recall, log, decisions = written(events)
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["revision"] for line in lines] == list(range(1, len(events) + 1))
    assert log.count(b"\n") == len(events)
    assert [line["type"] for line in lines] == [type(event).__name__ for event in events]
    assert claimed(state_page(recall)) == (pages.FORMAT, len(events))
    assert (recall.log.bytes, recall.decisions.bytes) == (len(log), len(decisions))
    decided = sum(isinstance(event, ev.DecisionRecorded) for event in events)
    assert len(re.findall(rb"\n## \d+\. ", decisions)) == decided == recall.tally.decisions
    turns = sum(
        isinstance(event, ev.TaskForked) or (isinstance(event, ev.CheckpointRestored) and event.position > 0)
        for event in events
    )
    assert decisions.count(b"\n## ") == decided + turns
    holds: tuple[str, ...] = ()
    for event in events:
        if isinstance(event, ev.DecisionRecorded):
            holds = (*holds, event.text)[-10:]
        elif isinstance(event, ev.TaskForked) or (isinstance(event, ev.CheckpointRestored) and event.position > 0):
            holds = event.decided
    assert plan_page(recall).count(b"\n- ") == 4 + len(holds)
