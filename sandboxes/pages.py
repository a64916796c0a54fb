"""The pages of a task's memory folder, as pure functions of the task's stream: no clock, no files.

    log.jsonl      a line for each record              decisions.md   a section for each decision
    state.json     what is true now                    plan.md        what is done and decided, to be edited

The first two only ever grow: what a record adds to them is a *piece*, and a folder is brought up to date by appending.
A `Recall` is all that is needed to go on from a revision, and its size does not depend on how long the stream is.

Everything here may be hostile: titles, arguments, output. What does not print is escaped as JSON has it, or as Python
has it; in Markdown, so is what would be markup.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from blake3 import blake3

from sandkeep.events import Record
from sandkeep.events import catalogue as ev
from sandkeep.projections import registry, summary
from sandkeep.projections.branches import RECENT
from sandkeep.projections.summary import Decision, Stats, Tally
from sandkeep.sandboxes.text import escaped, moment

FORMAT = 4
"""Raised whenever the same stream would give other pages."""

LOG, DECISIONS, STATE, PLAN = "log.jsonl", "decisions.md", "state.json", "plan.md"

SHOWN_CHARACTERS = 1000
"""How much of a stream's output stands in a line of the log; the record has the rest, or names the blob."""

_WENT_BACK = "What was decided above behind position {position} is on a branch that was left. What holds, the last:"
_FORKED = "What had been decided there at checkpoint `{checkpoint}`, position {position}, the last of it:"
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&!$^])")
_LIST_ITEM = re.compile(r"^(?:([-+=])|(\d+)([.)]))")


class Trail(msgspec.Struct, frozen=True):
    """How far a growing page has come. `digest` is BLAKE3, in hex, of the digest before (as text) and the last piece;
    that of no piece is empty."""

    pieces: int = 0
    bytes: int = 0
    digest: str = ""


class Moment(msgspec.Struct, frozen=True):
    """A checkpoint of a task, and the position at which it was taken."""

    task: str
    checkpoint: str
    position: int


class Plan(msgspec.Struct, frozen=True):
    """What the plan is made from."""

    title: str = ""
    created: str = ""
    prepared: bool = False
    started: bool = False
    recorded: bool = False
    completed: bool = False
    given_up: str | None = None
    decided: tuple[str, ...] = ()
    back: Moment | None = None
    forked: Moment | None = None


class Recall(msgspec.Struct, frozen=True):
    """What the pages hold after the record of `revision`. `task` is None as long as the stream has not created it."""

    id: str
    revision: int = 0
    position: int = 0
    task: registry.Task | None = None
    tally: Tally = Tally()
    plan: Plan = Plan()
    log: Trail = Trail()
    decisions: Trail = Trail()


def advance(recall: Recall, record: Record) -> tuple[Recall, bytes, bytes]:
    """What the pages hold after `record`, and the pieces that it adds to the log and to the decisions."""
    event = record.event
    tally = summary.count(recall.tally, event)
    task = registry.evolve(recall.task, record, event)
    line = _line(record)
    section = b"" if recall.revision else _heading(recall.id)
    plan = recall.plan
    if isinstance(event, ev.DecisionRecorded):
        section += _section(summary.decision(tally.decisions, record, event))
        plan = msgspec.structs.replace(plan, decided=(*plan.decided, event.text)[-RECENT:])
    elif isinstance(event, ev.CheckpointRestored) and event.position:
        at = Moment(recall.id, event.checkpoint, event.position)
        section += _turn(f"Back to checkpoint {markdown(event.checkpoint)}", _WENT_BACK, at, record, event.decided)
        plan = msgspec.structs.replace(plan, decided=event.decided, back=at)
    elif isinstance(event, ev.TaskForked):
        at = Moment(event.task, event.checkpoint, event.position)
        section += _turn(f"Forked from task {markdown(event.task)}", _FORKED, at, record, event.decided)
        plan = msgspec.structs.replace(plan, decided=event.decided, forked=at)
    recall = Recall(
        recall.id,
        record.revision,
        record.position,
        task,
        tally,
        _planned(plan, task, event),
        _longer(recall.log, line),
        _longer(recall.decisions, section),
    )
    return recall, line, section


def state_page(recall: Recall) -> bytes:
    """state.json. Its `digest` is BLAKE3, in hex, of the page with an empty digest."""
    task = recall.task
    document: dict[str, Any] = {"format": FORMAT, "task": recall.id}
    if task is not None:
        # Not the document of the doors: whatever they come to show would make pages of before pass for damaged.
        document |= {
            "title": task.title,
            "state": task.state,
            "source": task.source,
            "commit": task.commit,
            "image": task.image,
            "container": task.container,
            "reason": task.reason,
            "created": moment(task.created_ns),
            "updated": moment(task.updated_ns),
            "tags": task.tags,
            "went_back": recall.plan.back,
            "forked_from": recall.plan.forked,
            "pending": [{"kind": each.kind, "since": moment(each.time_ns)} for each in task.pending],
            "stats": numbers(summary.stats(task, recall.tally)),
        }
    document |= {
        "revision": recall.revision,
        "position": recall.position,
        LOG: recall.log,
        DECISIONS: recall.decisions,
        "digest": "",
    }
    page = msgspec.json.format(_json(document), indent=2) + b"\n"
    head, tail = page[: -len(_NO_DIGEST)], page[-len(_NO_DIGEST) :]
    return head + tail.replace(b'""', b'"%s"' % blake3(page).hexdigest().encode())


def claimed(page: bytes) -> tuple[int, int] | None:
    """Format and revision that a state.json says it has; None if it is none, or its digest is not its own."""
    found = _CLAIM.search(page)
    if found is None or blake3(page[: found.start(1)] + page[found.end(1) :]).hexdigest().encode() != found[1]:
        return None
    try:
        document = msgspec.json.decode(page, type=_Claim)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return document.format, document.revision


def plan_page(recall: Recall) -> bytes:
    """plan.md, as it is until somebody edits it."""
    plan = recall.plan
    steps = {
        "the workspace is prepared": plan.prepared,
        "the sandbox has started": plan.started,
        "a checkpoint is taken": plan.recorded,
        "the task is completed": plan.completed,
    }
    lines = [f"# {markdown(plan.title) or 'A task'}", "", f"Task `{recall.id}`{plan.created}. This page follows its"]
    lines += ["record until somebody edits it; from then on it is left as it is.", "", "## Progress", ""]
    lines += [f"- [{'x' if done else ' '}] {step}" for step, done in steps.items()]
    if plan.given_up is not None:
        lines += ["", f"Given up: {markdown(plan.given_up) or 'no reason was given'}"]
    if plan.forked is not None:
        lines += ["", f"Forked from task `{markdown(plan.forked.task)}`,"]
        lines += [f"checkpoint `{markdown(plan.forked.checkpoint)}`."]
    if plan.back is not None:
        lines += ["", f"The task went back to checkpoint `{markdown(plan.back.checkpoint)}`, taken at position"]
        lines += [f"{plan.back.position}. What came after that is a branch that was left; log.jsonl has it still."]
    lines += ["", "## Decided", ""]
    lines += [f"- {markdown(text)}" for text in plan.decided] or ["Nothing yet."]
    return ("\n".join(lines) + "\n").encode()


def numbers(stats: Stats) -> dict[str, Any]:
    """The numbers of a task, by name."""
    return {
        "events": stats.events,
        "executions": stats.executions,
        "failures": stats.failures,
        "timed_out": stats.timed_out,
        "running_s": stats.running_ns / 1e9,
        "output_bytes": stats.output_bytes,
        "checkpoints": stats.checkpoints,
        "restores": stats.restores,
        "decisions": stats.decisions,
    }


def markdown(text: str) -> str:
    """Foreign text on one line of Markdown, where it stands for itself."""
    text = _MARKUP.sub(r"\\\1", escaped(text).strip())
    return _LIST_ITEM.sub(lambda found: f"\\{found[1]}" if found[1] else f"{found[2]}\\{found[3]}", text)


class _Claim(msgspec.Struct):
    format: int
    revision: int


_NO_DIGEST = b'"digest": ""\n}\n'
_CLAIM = re.compile(rb'"digest": "([0-9a-f]{64})"\n\}\n\Z')


def _planned(plan: Plan, task: registry.Task | None, event: object) -> Plan:
    if task is None:
        return plan
    return msgspec.structs.replace(
        plan,
        title=task.title,
        created=f", created {moment(task.created_ns)[:19]}Z",
        prepared=plan.prepared or isinstance(event, ev.WorkspacePrepared),
        started=plan.started or isinstance(event, ev.SandboxStarted),
        recorded=task.checkpoints > 0,
        completed=plan.completed or task.state is registry.TaskState.COMPLETED,
        given_up=task.reason or "" if task.state is registry.TaskState.FAILED else plan.given_up,
    )


def _line(record: Record) -> bytes:
    document: dict[str, Any] = {
        "revision": record.revision,
        "position": record.position,
        "time": moment(record.time_ns),
        "actor": record.actor,
        "cause": record.cause,
        "type": record.type,
        "data": _readable(msgspec.to_builtins(record.event, builtin_types=(bytes,))),
    }
    return _json(document) + b"\n"


def _heading(task: str) -> bytes:
    return f"# Decisions\n\nMade from the record of task `{task}`, oldest first.\n".encode()


def _section(decision: Decision) -> bytes:
    when = f"{moment(decision.time_ns)[:19]}Z"
    lines = ["", f"## {decision.number}. {markdown(decision.text)}", ""]
    lines += [f"{when}, by {markdown(decision.actor)}, at position {decision.position}."]
    if decision.reason:
        lines += ["", f"Because: {markdown(decision.reason)}"]
    if decision.alternatives:
        lines += ["", "Instead of:", "", *(f"- {markdown(each)}" for each in decision.alternatives)]
    return ("\n".join(lines) + "\n").encode()


def _turn(title: str, what: str, at: Moment, record: Record, decided: tuple[str, ...]) -> bytes:
    """The section that says that the task goes on from another moment than the one before."""
    said = what.format(checkpoint=markdown(at.checkpoint), position=at.position)
    lines = ["", f"## {title}", "", f"{moment(record.time_ns)[:19]}Z, by {markdown(record.actor)}."]
    lines += [said, "", *([f"- {markdown(each)}" for each in decided] or ["Nothing yet."])]
    return ("\n".join(lines) + "\n").encode()


def _longer(trail: Trail, piece: bytes) -> Trail:
    if not piece:
        return trail
    digest = blake3(trail.digest.encode() + piece).hexdigest()
    return Trail(trail.pieces + 1, trail.bytes + len(piece), digest)


def _readable(value: Any) -> Any:
    """An event's fields with text in place of bytes, no longer than is good to read."""
    if isinstance(value, bytes):
        text = value[: 4 * SHOWN_CHARACTERS].decode("utf-8", "replace")
        return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
    if isinstance(value, dict):
        return {name: _readable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(each) for each in value]
    return value


def _json(document: Any) -> bytes:
    """A document on one line, with an escape for every character that does not print."""
    text = msgspec.json.encode(document).decode()
    if text.isprintable():
        return text.encode()
    return "".join(each if each.isprintable() else _escaped(each) for each in text).encode()


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))
