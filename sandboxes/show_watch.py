"""How a picture of a keep looks on a screen of some size. Nothing but a picture goes in; see `watch`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sandkeep.projections import registry
from sandkeep.sandboxes import render, show_tasks, text
from sandkeep.sandboxes.quantity import show_size
from sandkeep.sandboxes.watch import Picture, Used

_HEADINGS = 3
"""Each part has a heading, the names of its columns, and an empty line behind it."""

_RATIOS = {"TITLE": 2, "AGENT": 1, "": 1}
_TITLE = 2
_AGENTS = 6
_ID = 12
_LEAST = 14
"""A screen of fewer lines shows the tasks only."""


def watched(picture: Picture | None, asked: Mapping[str, object]) -> None:
    """One frame, of the terminal's size; nothing if the terminal has shown all there was."""
    if picture is not None:
        size = shutil.get_terminal_size((120, 40))
        render.print_whole(frame(picture, size.columns, size.lines), size.columns)


def frame(picture: Picture, width: int, height: int) -> RenderableType:
    """A frame of exactly this width and at most this height. What there is no room for is counted."""
    if height < _LEAST:
        return Group(_title(picture, width), _tasks(picture, max(0, height - 2)))
    room = height - _TITLE - 3 * _HEADINGS + 1
    agents = min(max(1, len(picture.agents)), _AGENTS, room // 3)
    tasks = min(max(1, len(picture.tasks)), (room - agents) * 2 // 3)
    parts: list[RenderableType] = [
        _title(picture, width),
        Text(),
        *_part("Tasks", _count(len(picture.tasks), tasks, picture.more), _tasks(picture, tasks)),
        Text(),
        *_part("Agents", _count(len(picture.agents), agents, False), _agents(picture, agents)),
        Text(),
        *_part("Events", f"up to position {picture.position}", _events(picture, room - agents - tasks)),
    ]
    return Group(*parts)


def _title(picture: Picture, width: int) -> Text:
    steward = f"steward {picture.steward}" if picture.steward is not None else "no steward"
    memory = f"memory promised {show_size(picture.promised)} of {show_size(picture.budget)}" if picture.budget else ""
    said = "  ".join(each for each in (memory, steward) if each)
    line = Text("sandkeep  ", "bold").append(render.plain(picture.keep))
    line.truncate(max(0, width - len(said) - 2), overflow="ellipsis", pad=True)
    line.append(f"  {said}", "dim")
    line.truncate(width)
    return line


def _count(there: int, shown: int, more: bool) -> str:
    beyond = max(0, there - shown)
    return f"{beyond}{'+' * more} more" if beyond or more else ""


def _part(name: str, note: str, table: Table) -> list[RenderableType]:
    return [Text(name, "bold reverse").append(f" {note}", "not bold not reverse dim"), table]


def _tasks(picture: Picture, most: int) -> Table:
    table = _table("TASK", "STATE", "TITLE", "RUNS", "MEMORY", "CPUS", "PIDS", "GOING ON")
    for task in picture.tasks[:most]:
        used = picture.used.get(task.id)
        table.add_row(
            task.id,
            Text("idle" if task.idle else task.state, show_tasks.COLOURS[task.state]),
            render.plain(task.title),
            f"{task.executions}" + f" ({task.failures} failed)" * bool(task.failures),
            *_use(used),
            _doing(task, used),
        )
    if not picture.tasks:
        table.add_row("", "", Text("none yet", "dim"))
    return table


def _use(used: Used | None) -> tuple[str | Text, str, str]:
    if used is None or used.sample is None:
        return "", "", ""
    sample = used.sample
    part = sample.memory_bytes / sample.memory_limit if sample.memory_limit else 0.0
    colour = "red" if part > 0.95 else "yellow" if part > 0.8 else ""
    memory = Text(show_size(sample.memory_bytes) + f" {part:.0%}" * bool(sample.memory_limit), colour)
    return memory, "" if used.cpus is None else f"{used.cpus:.2f}", str(sample.pids)


def _doing(task: registry.Task, used: Used | None) -> Text:
    if used is not None and used.short:
        return Text("waits for memory", "red")
    return Text(", ".join(pending.kind for pending in task.pending), "yellow")


def _agents(picture: Picture, most: int) -> Table:
    table = _table("TASK", "AGENT", "LOCK", "MODE", "TOKEN", "SINCE", "LEASE LEFT")
    for agent in picture.agents[:most]:
        table.add_row(
            agent.task,
            render.plain(agent.name),
            "holds" if agent.token else Text("waits", "yellow"),
            agent.mode,
            str(agent.token or ""),
            render.second(text.moment(agent.since_ns)),
            f"{agent.left_s:.0f} s" if agent.left_s else Text("over", "red"),
        )
    if not picture.agents:
        table.add_row("", Text("nobody holds a lock or waits for one", "dim"))
    return table


def _events(picture: Picture, most: int) -> Table:
    table = _table("POSITION", "TIME", "STREAM", "EVENT", "")
    for record in picture.records[len(picture.records) - min(most, len(picture.records)) :]:
        table.add_row(
            str(record.position),
            text.moment(record.time_ns)[11:23],
            render.plain(record.stream),
            Text(record.type, "bold"),
            render.plain(render.summary(record.event)),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    for column in columns:
        least = _ID if column == "TASK" else None
        table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=_RATIOS.get(column), min_width=least)
    return table
