"""What the verbs for tasks do: calls of the library, and documents of what it gave. They hold no logic."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from sandkeep.projections import Filter, Sort, TaskState
from sandkeep.sandboxes import documents, documents_record, limits, view
from sandkeep.sandboxes.door import Door
from sandkeep.sandboxes.errors import BadSettings


def create_task(
    door: Door,
    *,
    title: str,
    source: str | None = None,
    image: str | None = None,
    owner: str | None = None,
    tag: Sequence[str] = (),
    parent: str | None = None,
    network: str = "none",
    allow: Sequence[str] = (),
    private: Sequence[str] = (),
    services: Sequence[str] = (),
    memory: str | None = None,
    swap: str | None = None,
    cpus: str | None = None,
    pids: str | None = None,
    tmp: str | None = None,
    disk: str | None = None,
    open_files: str | None = None,
    output: str | None = None,
    time: str | None = None,
    cache: Sequence[str] = (),
    no_caches: bool = False,
    writable_root: bool = False,
) -> documents.MadeTask:
    """Create a task; see `Keep.create_task`."""
    task = door.keep.create_task(
        title,
        source=None if source is None else door.source(source),
        image=image,
        owner=owner,
        tags=tag,
        parent=parent,
        network=network,
        allow=allow,
        private=private,
        services=services,
        limits=limits.named(memory, swap, cpus, pids, tmp, disk, open_files, output, time),
        caches=None if no_caches else cache,
        writable_root=writable_root,
        progress=door.progress,
    )
    return documents.made_task(task.state, str(task.workspace))


def list_tasks(
    door: Door,
    *,
    state: Sequence[str] = (),
    owner: str | None = None,
    tag: Sequence[str] = (),
    parent: str | None = None,
    text: str = "",
    created_since: str | None = None,
    created_before: str | None = None,
    updated_since: str | None = None,
    updated_before: str | None = None,
    sort: str = "created",
    reverse: bool = False,
    limit: int = 100,
    cursor: str | None = None,
    as_of: str | None = None,
) -> documents.TaskPage:
    """A page of tasks; see `View.tasks`."""
    with door.keep.as_of(as_of) as then:
        wanted = Filter(
            states=tuple(map(TaskState, state)) or tuple(each for each in TaskState if each is not TaskState.CLEANED),
            owner=owner,
            tags=tuple(tag),
            parent=None if parent is None else then.task(parent).id,
            text=text,
            created_since=_time(created_since),
            created_before=_time(created_before),
            updated_since=_time(updated_since),
            updated_before=_time(updated_before),
        )
        page = then.tasks(wanted, sort=Sort(sort), reverse=reverse, limit=limit, cursor=cursor)
    return documents.TaskPage([documents.task(each) for each in page.tasks], page.next)


def show_task(door: Door, *, task: str, as_of: str | None = None) -> documents.ShownTask:
    """A task, and what belongs to it; see `View`."""
    keep = door.keep
    with keep.as_of(as_of) as then:
        state = then.task(task)
        folder = keep.task(state.id).workspace
        workspace = str(folder) if as_of is None and folder.exists() else None
        share = None
        if workspace is not None:
            with contextlib.suppress(BadSettings):  # which 'doctor' says, and no question about a task is about
                share = keep.resources(state.id).disk
        return documents.shown_task(
            state,
            workspace=workspace,
            checkpoints=then.checkpoints(state.id),
            origin=then.forked_from(state.id),
            own=then.own_workspaces(state.id),
            disk=share,
            caches=() if workspace is None else keep.caches.of(state.id),
        )


def find_task(
    door: Door, *, words: Sequence[str], limit: int = 20, as_of: str | None = None
) -> list[documents_record.FoundTask]:
    """The tasks that fit words best; see `View.find`."""
    with door.keep.as_of(as_of) as then:
        return [documents_record.found_task(each) for each in then.find(" ".join(words), limit=limit)]


def changes(door: Door, *, since: str, until: str | None = None) -> list[documents_record.Changed]:
    """What became of tasks between two moments; see `Keep.changes`."""
    return [documents_record.changed(each) for each in door.keep.changes(since, until)]


def tag_task(door: Door, *, task: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> documents.Task:
    """Give a task tags, and take tags from it; see `Task.tag`."""
    found = door.keep.task(task)
    found.tag(add=add, remove=remove)
    return documents.task(found.state)


def _time(text: str | None) -> int | None:
    return None if text is None else view.nanoseconds(view.parse_time(text))
