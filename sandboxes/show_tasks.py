"""What the command line shows people of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.text import Text

from sandkeep.sandboxes import documents, documents_record, render
from sandkeep.sandboxes.quantity import show_size

COLOURS = {
    "created": "cyan",
    "active": "green",
    "paused": "yellow",
    "completed": "blue",
    "failed": "red",
    "cleaned": "bright_black",
}


def made(task: documents.MadeTask, asked: Mapping[str, object]) -> None:
    """The id of a new task."""
    print(task.id)


def page(found: documents.TaskPage, asked: Mapping[str, object]) -> None:
    """A table of tasks, and how to get more of them."""
    table(found.tasks)
    if found.next is not None:
        print(f"there are more: --cursor {found.next}")


def found(tasks: list[documents_record.FoundTask], asked: Mapping[str, object]) -> None:
    """A table of the tasks that fit."""
    table(tasks, "no task fits; try fewer words, or 'sandkeep list-tasks'")


def state(task: documents.Task, asked: Mapping[str, object]) -> None:
    """What a verb that changed a task's state has to say."""
    print(f"{task.id}  {task.state}")


def tags(task: documents.Task, asked: Mapping[str, object]) -> None:
    """The tags that a task has now."""
    print(render.plain(f"{task.id}  {' '.join(task.tags)}"))


def changes(found: list[documents_record.Changed], asked: Mapping[str, object]) -> None:
    """A table of what became of tasks."""
    rows = []
    for each in found:
        fields = (
            f"{name}: {render.short(name, both.before)} → {render.short(name, both.after)}"
            for name, both in each.fields.items()
        )
        rows.append((each.task.id, each.change.value, render.plain(each.task.title), render.plain(", ".join(fields))))
    render.print_rows(("TASK", "CHANGE", "TITLE", "FIELDS"), rows, "nothing changed")


def table(tasks: Iterable[documents.Task], empty: str = "no tasks yet; 'sandkeep create-task TITLE' makes one") -> None:
    """A table of tasks, or the line `empty`."""
    rows = [
        (
            task.id,
            Text(task.state, COLOURS[task.state]),
            render.plain(task.title),
            render.plain(task.owner),
            render.plain(" ".join(task.tags)),
            str(task.counts.executions),
            str(task.counts.checkpoints),
            Text(", ".join(pending.kind for pending in task.pending), "yellow"),
            render.second(task.updated),
        )
        for task in tasks
    ]
    columns = ("TASK", "STATE", "TITLE", "OWNER", "TAGS", "RUNS", "CHECKPOINTS", "PENDING", "UPDATED")
    render.print_rows(columns, rows, empty)


def task(found: documents.ShownTask, asked: Mapping[str, object]) -> None:
    """All that is true of one task."""
    origin, counts = found.forked_from, found.counts
    rows = {
        "title": render.plain(found.title),
        "state": Text(found.state, COLOURS[found.state]),
        "reason": render.plain(found.reason or ""),
        "owner": render.plain(found.owner),
        "tags": render.plain(" ".join(found.tags)),
        "parent": render.plain(found.parent or ""),
        "forked from": render.plain("" if origin is None else f"{origin.task}, checkpoint {origin.checkpoint}"),
        "source": render.plain(found.source or ""),
        "commit": render.plain(found.commit or ""),
        "workspace": render.plain(found.workspace or ""),
        "image": render.plain(found.image),
        "sandbox": render.plain((found.container or "")[:12] + (", frozen until the next command" * found.idle)),
        "root": render.plain(", ".join(_root(found))),
        "runs": Text(f"{counts.executions}, of which failed {counts.failures}; {counts.output_bytes} bytes of output"),
        "pending": Text(", ".join(f"{each.kind} since {each.since}" for each in found.pending), "yellow"),
    }
    render.print_rows(("TASK", found.id), [(name, value) for name, value in rows.items() if value.plain])
    checkpoints(found.checkpoints)
    _shares(found)
    if found.own_workspaces:
        own = [
            (each.task, render.plain(each.agent), str(each.token), render.second(each.created))
            for each in found.own_workspaces
        ]
        render.print_rows(("OWN WORKSPACE", "AGENT", "TOKEN", "MADE"), own)


def checkpoints(found: Iterable[documents.Checkpoint]) -> None:
    """A table of checkpoints, if there are any."""
    rows = [checkpoint_row(each, str(each.bytes)) for each in found]
    if rows:
        render.print_rows(("CHECKPOINT", "TAKEN", "FILES", "BYTES", "LABEL"), rows)


def checkpoint_row(checkpoint: documents.Checkpoint, size: str) -> tuple[str | Text, ...]:
    """A checkpoint in a table; its `size` as it is to be shown."""
    label = render.plain(checkpoint.label)
    for note in notes(checkpoint):
        label.append(f"  {render.plain(note)}", "red" if note.endswith(" torn") else "dim")
    return checkpoint.id, render.second(checkpoint.created), str(checkpoint.files), size, label


def notes(checkpoint: documents.Checkpoint) -> list[str]:
    """What there is to know of a checkpoint beside its label."""
    said = [f"{len(checkpoint.torn)} torn"] if checkpoint.torn else []
    said += [f"{checkpoint.commands} commands ran, whose processes it has not"] if checkpoint.commands else []
    said += ["with its system"] if checkpoint.image else []
    said += ["pinned"] if checkpoint.pinned else []
    said += [f"#{tag}" for tag in checkpoint.tags]
    return said + ([f"expired: {checkpoint.reason}"] if checkpoint.expired else [])


def _root(found: documents.Task) -> list[str]:
    return ["can be written to"] * found.writable_root + ([f"from {found.system[:19]}"] if found.system else [])


def _shares(found: documents.ShownTask) -> None:
    disk = found.disk
    if disk is not None:
        taken = "not measured yet" if disk.bytes is None else show_size(disk.bytes)
        print(f"disk  {taken} of {show_size(disk.limit)}: {disk.means}" if disk.limit else f"disk  {taken}, no limit")
    for each in found.caches:
        print(f"cache  {each.name}: {'read-write' if each.writable else 'read-only'}")
