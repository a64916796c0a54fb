"""A registry of tasks over the `eventsourcing` package on SQLite, as the peer of `benchmarks/projections.py`.

It runs in an environment of its own.

Reads a JSON list a line, an action and its arguments, and answers each with a line of JSON.

The events stand in the library's application recorder, with its own JSON transcoder. The registry is a table of tasks
with an index for each of the columns that tasks are listed by, tables of tags, words and checkpoints. It is rebuilt the
fast way: notifications in pages, decoded, folded in memory, the tasks of a page written once, one transaction a page,
unsynced. Nothing is verified or compared.
"""

from __future__ import annotations

import json
import re
import sqlite3
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

# This package is in the peer's environment only, so there is nothing here that its types could be checked against.
from eventsourcing.domain import DomainEvent  # type: ignore[import-not-found]
from eventsourcing.persistence import (  # type: ignore[import-not-found]
    DatetimeAsISO,
    EventStore,
    JSONTranscoder,
    Mapper,
    UUIDAsHex,
)
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore  # type: ignore[import-not-found]

PAGE = 10_000
COLUMNS = "id title state source image owner parent container reason commit_ events executions failures checkpoints"
COLUMNS += " cpu_ns bytes created updated created_time updated_time pending"
SCHEMA = f"""
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = OFF;
    CREATE TABLE tasks ({", ".join(COLUMNS.split())}, PRIMARY KEY (id)) WITHOUT ROWID;
    CREATE INDEX by_state ON tasks (state, created);
    CREATE INDEX by_owner ON tasks (owner, created);
    CREATE INDEX by_parent ON tasks (parent, created);
    CREATE INDEX by_created ON tasks (created);
    CREATE INDEX by_updated ON tasks (updated);
    CREATE INDEX by_title ON tasks (title COLLATE NOCASE);
    CREATE TABLE tags (tag, task, PRIMARY KEY (tag, task)) WITHOUT ROWID;
    CREATE TABLE words (word, task, PRIMARY KEY (word, task)) WITHOUT ROWID;
    CREATE TABLE checkpoints (task, position, data, PRIMARY KEY (task, position)) WITHOUT ROWID;
"""
WORD = re.compile(r"[^\W_]+")


class Happened(DomainEvent):  # type: ignore[misc]
    type: str
    task: str
    data: dict[str, Any]


class Store:
    """The events, and the registry that is folded from them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        datastore = SQLiteDatastore(str(folder / "peer.db"))
        self._recorder = SQLiteApplicationRecorder(datastore)
        self._recorder.create_table()
        transcoder = JSONTranscoder()
        transcoder.register(UUIDAsHex())
        transcoder.register(DatetimeAsISO())
        self._mapper = Mapper(transcoder)
        self._events = EventStore(self._mapper, self._recorder)
        self._versions: dict[str, int] = {}
        self._count = 0

    def append(self, facts: list[tuple[str, str, str]]) -> int:
        """Store them; how many there are."""
        now = Happened.create_timestamp()
        events = []
        for stream, name, data in facts:
            revision = self._versions[stream] = self._versions.get(stream, 0) + 1
            task = stream.removeprefix("task/")
            events.append(Happened(uuid5(UUID(int=0), task), revision, now, name, task, json.loads(data)))
        self._events.put(events)
        self._count += len(events)
        return self._count

    def rebuild(self) -> float:
        """Fold all events into a new registry; seconds."""
        for old in self._folder.glob("registry.db*"):
            old.unlink()
        started = time.perf_counter()
        db = sqlite3.connect(self._folder / "registry.db", isolation_level=None)
        db.executescript(SCHEMA)
        tasks: dict[str, dict[str, Any]] = {}
        places = ", ".join("?" * len(COLUMNS.split()))
        position = 0
        while page := self._recorder.select_notifications(position + 1, PAGE):
            touched: dict[str, None] = {}
            tags: list[tuple[str, str]] = []
            words: list[tuple[str, str]] = []
            checkpoints: list[tuple[str, int, str]] = []
            for notification in page:
                event = self._mapper.to_domain_event(notification)
                position = notification.id
                if event.type == "TaskCreated":
                    tasks[event.task] = created(event, position)
                    tags += ((tag, event.task) for tag in event.data["tags"])
                    texts = (event.data["title"], *event.data["tags"])
                    words += ((word, event.task) for text in texts for word in WORD.findall(text.casefold()))
                if event.type == "CheckpointCreated":
                    checkpoints.append((event.task, position, json.dumps(event.data)))
                evolve(tasks[event.task], event, position)
                touched[event.task] = None
            db.execute("BEGIN")
            rows = [
                tuple((task | {"pending": json.dumps(task["pending"])}).values())
                for task in map(tasks.__getitem__, touched)
            ]
            db.executemany(f"INSERT OR REPLACE INTO tasks VALUES ({places})", rows)
            db.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?)", tags)
            db.executemany("INSERT OR IGNORE INTO words VALUES (?, ?)", words)
            db.executemany("INSERT INTO checkpoints VALUES (?, ?, ?)", checkpoints)
            db.execute("COMMIT")
        taken = time.perf_counter() - started
        if position != self._count or db.execute("SELECT count(*) FROM tasks").fetchone()[0] != len(tasks):
            raise RuntimeError("the registry does not hold what was appended")
        db.close()
        return taken


def created(event: Happened, position: int) -> dict[str, Any]:
    """A task as it begins."""
    task: dict[str, Any] = dict.fromkeys(COLUMNS.split())
    task |= {name: event.data[name] for name in ("title", "source", "image", "owner", "parent")}
    task |= dict.fromkeys(("events", "executions", "failures", "checkpoints", "cpu_ns", "bytes"), 0)
    return task | {
        "id": event.task, "state": "created", "created": position, "created_time": event.timestamp.isoformat(),
        "pending": [],
    }  # fmt: skip


def evolve(task: dict[str, Any], event: Happened, position: int) -> None:
    """Advance a task by an event."""
    data = event.data
    task["events"] += 1
    task["updated"], task["updated_time"] = position, event.timestamp.isoformat()
    match event.type:
        case "TaskCreated" | "SandboxRequested" | "CommandRequested":
            task["pending"].append(data["intent"])
        case "WorkspacePrepared" | "SandboxStarted" | "CommandExecuted":
            task["pending"] = [intent for intent in task["pending"] if intent != data["intent"]]
    match event.type:
        case "WorkspacePrepared":
            task["commit_"] = data["commit"]
        case "SandboxStarted":
            task["container"], task["state"] = data["container"], "active"
        case "CommandExecuted":
            task["executions"] += 1
            task["failures"] += data["exit_code"] != 0
            task["cpu_ns"] += data["cpu_ns"]
            task["bytes"] += data["stdout"]["size"] + data["stderr"]["size"]
        case "CheckpointCreated":
            task["checkpoints"] += 1
        case "TaskCompleted":
            task["state"] = "completed"
        case "TaskFailed":
            task["state"], task["reason"] = "failed", data["reason"]


def main() -> None:
    store: Store | None = None
    for line in sys.stdin:
        action, *arguments = json.loads(line)
        answer: object
        if action == "open":
            store = Store(Path(sys.argv[1]))
            answer = {"eventsourcing": version("eventsourcing"), "sqlite": sqlite3.sqlite_version}
        else:
            assert store is not None
            answer = store.append(*arguments) if action == "append" else store.rebuild()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
