"""What verbs answer with about tasks and what is done in them: the documents that `--json` prints and that agents get.

A document holds nothing but JSON's types, times as RFC 3339 has them in UTC, and bytes as base64. A field of a released
document is neither taken away nor given another meaning. What is left out unless it says something is `UNSET`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType

from sandkeep.events.catalogue import CacheChoice, Version
from sandkeep.projections import TaskState
from sandkeep.sandboxes.disk import Share
from sandkeep.sandboxes.text import moment

if TYPE_CHECKING:
    from sandkeep import projections
    from sandkeep.events import BlobStore
    from sandkeep.events.catalogue import Output
    from sandkeep.projections import registry
    from sandkeep.sandboxes import conflict_work, execution
    from sandkeep.sandboxes.background import Running

OUTPUT_BYTES = 16 << 20
"""How much of a stream a document holds at most; the rest is in the blob that it names."""


class Counts(msgspec.Struct, frozen=True):
    """What was done in a task. `output_bytes` is what its commands wrote, `cpu_s` the processor time they had."""

    events: int
    executions: int
    failures: int
    checkpoints: int
    output_bytes: int
    cpu_s: float


class Pending(msgspec.Struct, frozen=True):
    """Something that is under way, or was left behind by a crash."""

    intent: str
    kind: str
    position: int
    since: str


class Task(msgspec.Struct, frozen=True):
    """A task. `container` is its live sandbox, frozen until the next command if it is `idle`; `reason` is why it
    failed or ended; `source` and `commit` are what its workspace was cloned from."""

    id: str
    title: str
    state: TaskState
    source: str | None
    commit: str | None
    image: str
    container: str | None
    idle: bool
    writable_root: bool
    system: str | None
    reason: str | None
    owner: str
    tags: tuple[str, ...]
    parent: str | None
    created: str
    updated: str
    counts: Counts
    pending: tuple[Pending, ...]


class MadeTask(Task, frozen=True):
    """A new task; `workspace` is the folder of its files on the host."""

    workspace: str


class TaskPage(msgspec.Struct, frozen=True):
    """A page of tasks; `next` is the cursor of the page behind it, null on the last."""

    tasks: list[Task]
    next: str | None


class Checkpoint(msgspec.Struct, frozen=True):
    """A recorded workspace. `files` and `bytes` count its regular files; `torn` are the paths that would not hold
    still. `expired` is when it could no more be restored, and `reason` why; null while it can."""

    id: str
    task: str
    digest: str
    files: int
    bytes: int
    label: str
    torn: tuple[str, ...]
    position: int
    created: str
    pinned: bool
    tags: tuple[str, ...]
    commands: int
    frozen_s: float
    image: str | None
    expired: str | None
    reason: str | None


class Origin(msgspec.Struct, frozen=True):
    """Where a task was forked from."""

    task: str
    checkpoint: str


class OwnWorkspace(msgspec.Struct, frozen=True):
    """The own workspace of an agent in a task: a task itself, not merged yet."""

    task: str
    agent: str
    token: int
    checkpoint: str
    position: int
    created: str


class ShownTask(Task, frozen=True):
    """A task, with what belongs to it. `workspace` is the folder of its files on the host, null if there is none or
    the past was asked for."""

    workspace: str | None
    checkpoints: list[Checkpoint]
    forked_from: Origin | None
    own_workspaces: list[OwnWorkspace]
    disk: Share | None
    caches: tuple[CacheChoice, ...]


class Conflict(msgspec.Struct, frozen=True):
    """A collision of agents at a path, open while nothing is `taken`. `ours` is the later agent's, `theirs` what was
    there; the content of each is the blob of its digest."""

    id: str
    task: str
    kind: str
    path: str
    agents: tuple[str, ...]
    others: tuple[str, ...]
    strategy: str
    base: Version | None
    ours: Version | None
    theirs: Version | None
    renamed: str
    position: int
    taken: str
    result: Version | None
    resolved_at: int | None
    detected: str


class News(msgspec.Struct, frozen=True):
    """What others did in the task: how many paths each has changed since the last command, and the conflicts."""

    changed: dict[str, int]
    conflicts: list[Conflict]


class Ran(msgspec.Struct, frozen=True):
    """What a command did. Its streams are text, in which what is not UTF-8 is replaced, and exact as base64 if that is
    so; of a long one this is the beginning, and `_blob` names all of it."""

    command: str
    exit_code: int
    duration_s: float
    timed_out: bool
    oom_killed: bool
    stdout: str
    stdout_bytes: int
    stdout_blob: str | None
    stdout_truncated: bool
    stderr: str
    stderr_bytes: int
    stderr_blob: str | None
    stderr_truncated: bool
    stdout_base64: bytes | UnsetType = UNSET
    stderr_base64: bytes | UnsetType = UNSET
    news: News | UnsetType = UNSET
    own_workspace: str | UnsetType = UNSET


class Process(msgspec.Struct, frozen=True):
    """A command that runs in the background."""

    command: str
    argv: tuple[str, ...]
    cwd: str
    timeout_s: float


def task(found: registry.Task) -> Task:
    """The document of a task."""
    return Task(**task_fields(found))


def made_task(found: registry.Task, workspace: str) -> MadeTask:
    """The document of a task that has just been made."""
    return MadeTask(**task_fields(found), workspace=workspace)


def shown_task(
    found: registry.Task,
    *,
    workspace: str | None,
    checkpoints: Iterable[projections.Checkpoint],
    origin: tuple[str, str] | None,
    own: Iterable[projections.Fork],
    disk: Share | None,
    caches: Iterable[CacheChoice],
) -> ShownTask:
    """The document of a task with what belongs to it."""
    return ShownTask(
        **task_fields(found),
        workspace=workspace,
        checkpoints=[checkpoint(each) for each in checkpoints],
        forked_from=None if origin is None else Origin(*origin),
        own_workspaces=[_own_workspace(each) for each in own],
        disk=disk,
        caches=tuple(caches),
    )


def checkpoint(found: projections.Checkpoint) -> Checkpoint:
    """The document of a checkpoint."""
    return Checkpoint(**checkpoint_fields(found))


def checkpoint_fields(found: projections.Checkpoint) -> dict[str, Any]:
    """The fields of a checkpoint's document."""
    same = ("id", "task", "digest", "files", "bytes", "label", "torn", "position", "pinned", "tags", "commands")
    return {name: getattr(found, name) for name in same} | {
        "created": moment(found.time_ns),
        "frozen_s": found.frozen_ns / 1e9,
        "image": found.image or None,
        "expired": moment(found.expired_ns) if found.expired_ns else None,
        "reason": found.expired or None,
    }


def conflict(found: projections.Conflict) -> Conflict:
    """The document of a conflict."""
    fields = {name: value for name, value in msgspec.structs.asdict(found).items() if name not in ("time_ns", "based")}
    return Conflict(**fields | {"detected": moment(found.time_ns), "resolved_at": found.resolved_at or None})


def ran(result: execution.Result, blobs: BlobStore, own: str | None = None) -> Ran:
    """The document of what a command did, perhaps in the `own` workspace of an agent."""
    news = result.news
    return Ran(
        command=result.command,
        exit_code=result.exit_code,
        duration_s=round(result.duration_s, 6),
        timed_out=result.timed_out,
        oom_killed=result.oom_killed,
        **_stream("stdout", result.stdout, blobs),
        **_stream("stderr", result.stderr, blobs),
        news=UNSET if news is None else _news(news),
        own_workspace=UNSET if own is None else own,
    )


def process(found: Running) -> Process:
    """The document of a command in the background."""
    asked = found.request
    return Process(found.id, asked.argv, asked.cwd, asked.timeout_ns / 1e9)


def task_fields(found: registry.Task) -> dict[str, Any]:
    """The fields of a task's document."""
    same = (
        "id",
        "title",
        "state",
        "source",
        "commit",
        "image",
        "container",
        "idle",
        "reason",
        "owner",
        "tags",
        "parent",
    )
    return {name: getattr(found, name) for name in same} | {
        "writable_root": found.writable,
        "system": found.system or None,
        "created": moment(found.created_ns),
        "updated": moment(found.updated_ns),
        "counts": Counts(
            events=found.events,
            executions=found.executions,
            failures=found.failures,
            checkpoints=found.checkpoints,
            output_bytes=found.bytes,
            cpu_s=round(found.cpu_ns / 1e9, 6),
        ),
        "pending": tuple(
            Pending(each.intent, each.kind, each.position, moment(each.time_ns)) for each in found.pending
        ),
    }


def _own_workspace(found: projections.Fork) -> OwnWorkspace:
    return OwnWorkspace(found.task, found.agent, found.token, found.checkpoint, found.position, moment(found.time_ns))


def _news(news: conflict_work.News) -> News:
    return News(news.changed, [conflict(each) for each in news.conflicts])


def _beginning(output: Output, blobs: BlobStore) -> bytes:
    from sandkeep.sandboxes.execution import chunks

    data = bytearray()
    for piece in chunks(output, blobs):  # to the end, where it is known to be undamaged
        data += piece[: OUTPUT_BYTES - len(data)]
    return bytes(data)


def _stream(name: str, output: Output, blobs: BlobStore) -> dict[str, Any]:
    data = _beginning(output, blobs)
    document: dict[str, Any] = {
        name: data.decode("utf-8", "replace"),
        f"{name}_bytes": output.size,
        f"{name}_blob": output.blob,
        f"{name}_truncated": output.truncated or output.size > len(data),
    }
    try:
        data.decode()
    except UnicodeDecodeError:
        document[f"{name}_base64"] = data
    return document
