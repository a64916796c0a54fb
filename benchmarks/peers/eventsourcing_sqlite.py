"""The `eventsourcing` package on SQLite, as the peer of `benchmarks/log.py`; runs in an environment of its own.

Reads a JSON list a line, an action and its arguments, and answers each with a line of JSON.

The path measured is `EventStore` over the application recorder, with the library's own JSON transcoder: what
`Application.save` and a follower of the notification log stand on, without what those two add to it. The library sets
WAL and leaves `synchronous` as SQLite was built; here it is set to FULL, so that each commit is synced.

The library has no asyncio interface. Many asyncio callers hand their appends to the threads of their loop, as its users
do; each thread then has a connection from the library's pool.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

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

PAGE = 1000
"""Notifications a query: larger pages were no faster."""

FULL = 2

TOGETHER = 0
"""Names the database of the many callers where others are named by their batch."""


class CommandRequested(DomainEvent):  # type: ignore[misc]
    intent: str
    argv: list[str]
    cwd: str
    env: list[str]
    timeout_ns: int


class Store:
    """A database of its own, whose commits hold `batch` events each."""

    def __init__(self, folder: Path, batch: int, streams: int, content: list[dict[str, Any]]) -> None:
        datastore = SQLiteDatastore(str(folder / f"peer-{batch}.db"))
        connect = datastore.pool._create_connection

        def synced() -> Any:
            connection = connect()
            connection.cursor().execute(f"PRAGMA synchronous={FULL}")
            return connection

        datastore.pool._create_connection = synced
        self._recorder = SQLiteApplicationRecorder(datastore)
        self._recorder.create_table()
        transcoder = JSONTranscoder()
        transcoder.register(UUIDAsHex())
        transcoder.register(DatetimeAsISO())
        self._mapper = Mapper(transcoder)
        self._events = EventStore(self._mapper, self._recorder)
        with datastore.get_connection(commit=True) as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT (SELECT synchronous FROM pragma_synchronous), journal_mode FROM pragma_journal_mode")
            if tuple(cursor.fetchone()) != (FULL, "wal"):
                raise RuntimeError("the database would not sync each commit")
        self._batch = batch
        self._content = content
        self._streams = [UUID(int=number + 1) for number in range(streams)]
        self._versions = [0] * streams
        self._commits = 0

    def append(self, commits: int) -> float:
        """Events a second over so many commits."""
        started = time.perf_counter()
        for commit in range(self._commits, self._commits + commits):
            number = commit % len(self._streams)
            at = commit * self._batch % len(self._content)
            stream, revision, now = self._streams[number], self._versions[number], CommandRequested.create_timestamp()
            events = [
                CommandRequested(stream, revision + i, now, **fields)
                for i, fields in enumerate(self._content[at : at + self._batch], 1)
            ]
            self._events.put(events)
            self._versions[number] += len(events)
        taken = time.perf_counter() - started
        self._commits += commits
        return commits * self._batch / taken

    def together(self, callers: int, each: int) -> float:
        """Events a second by so many asyncio callers, all together, each with a stream of its own for this run."""
        now = CommandRequested.create_timestamp()

        def put(stream: UUID, revision: int) -> None:
            fields = self._content[revision % len(self._content)]
            self._events.put([CommandRequested(stream, revision, now, **fields)])

        async def caller() -> None:
            stream = uuid4()
            for revision in range(1, each + 1):
                await asyncio.to_thread(put, stream, revision)

        async def run() -> float:
            started = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(callers)))
            return time.perf_counter() - started

        return callers * each / asyncio.run(run())

    def replay(self) -> float:
        """Events a second over the whole database."""
        count = 0
        event = None
        started = time.perf_counter()
        while page := self._recorder.select_notifications(count + 1, PAGE):
            for notification in page:
                event = self._mapper.to_domain_event(notification)
            count += len(page)
        taken = time.perf_counter() - started
        last = self._content[(count - 1) % len(self._content)]
        if count != self._commits * self._batch or {name: getattr(event, name) for name in last} != last:
            raise RuntimeError("the replay did not give what was appended")
        return count / taken


def main() -> None:
    folder = Path(sys.argv[1])
    stores: dict[int, Store] = {}
    for line in sys.stdin:
        action, batch, *arguments = json.loads(line)
        answer: object
        if action == "open":
            stores = {size: Store(folder, size, *arguments) for size in (1, batch, TOGETHER)}
            answer = {"eventsourcing": version("eventsourcing"), "sqlite": sqlite3.sqlite_version}
        else:
            answer = getattr(stores[batch], action)(*arguments)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
