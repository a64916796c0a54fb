"""Agents that work on one task without an engine: what they do between two looks is done to the folder itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Rule
from sandkeep.projections import Conflict
from sandkeep.sandboxes import Keep, conflict
from sandkeep.sandboxes.conflict import TaskConflicts
from sandkeep.sandboxes.conflict_work import News

TASK = "0123456789ab"


class Team:
    """A task in `keep`, and the agents that run commands in it."""

    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.workspace = keep.path / "tasks" / TASK / "workspace"
        self.workspace.mkdir(parents=True)
        self._numbers = itertools.count()
        keep.log.append(f"task/{TASK}", [ev.TaskCreated("i", "a title", None, "image")], actor="tester")

    def begin(self, agent: str) -> str:
        """The agent's command begins; returns its id."""
        self.keep.actor = agent
        command = f"command {next(self._numbers)}"
        with self.keep.working(TASK):
            conflict.begin(self.keep, TASK)
            self._store(ev.CommandRequested(command, ("x",), "/workspace", (), 1))
        return command

    def end(self, agent: str, command: str) -> News | None:
        """The agent's command ends."""
        self.keep.actor = agent
        news = conflict.end(self.keep, TASK, command)
        self._store(ev.CommandExecuted(command, 0, 1, False, ev.Output(0, b""), ev.Output(0, b"")))
        return news

    def run(self, agent: str, act: Callable[[], object] = lambda: None) -> News | None:
        """The agent runs a command that does `act`."""
        command = self.begin(agent)
        act()
        return self.end(agent, command)

    def write(self, agent: str, path: str, content: str | bytes) -> News | None:
        """The agent writes a file."""
        return self.run(agent, lambda: self.put(path, content))

    def put(self, path: str, content: str | bytes) -> None:
        """The file is there."""
        target = self.workspace / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)

    def read(self, path: str) -> str:
        """What the file holds."""
        return (self.workspace / path).read_text()

    def attach(self, *agents: str) -> None:
        """Each of them has run a command that changed nothing."""
        for agent in agents:
            self.run(agent)

    def rules(self, *rules: tuple[str, str]) -> None:
        """Set the rules that settle conflicts."""
        self.conflicts.set_rules([Rule(pattern, strategy) for pattern, strategy in rules])

    @property
    def conflicts(self) -> TaskConflicts:
        """The conflicts of the task."""
        return self.keep.conflicts(TASK)

    def found(self) -> list[Conflict]:
        """All conflicts there were."""
        return self.conflicts.list(settled=True)

    def changes(self) -> list[tuple[tuple[str, ...], list[str]]]:
        """Whose changes were recorded, and of which paths."""
        events = (record.event for record in self.keep.log.read())
        return [
            (event.agents, [change.path for change in event.changes])
            for event in events
            if isinstance(event, ev.PathsChanged)
        ]

    def content(self, version: ev.Version | None) -> bytes:
        """The content that a version names, from the keep's blobs."""
        assert version is not None
        return self.keep.blobs.get(version.digest)

    def _store(self, event: ev.Intent | ev.Outcome) -> None:
        self.keep.log.append(f"task/{TASK}", [event], actor=self.keep.actor)


def lines(**changed: str) -> str:
    """Nine lines, some of them changed: `lines(l2="two")`."""
    return "".join(changed.get(f"l{number}", f"line {number}") + "\n" for number in range(1, 10))


def folder_of(path: Path) -> list[str]:
    """The names in a folder."""
    return sorted(entry.name for entry in path.iterdir())
