"""Any sequence of calls leaves the log as a plain list would be: the calls that a caller makes on purpose.

`test_log_machine_crash` goes on from here with what happens to a log, and runs both.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandkeep.events import (
    Event,
    KeyReused,
    LmdbLog,
    Receipt,
    Record,
    RevisionConflict,
    UnknownEvent,
    event,
    schema,
    upcast,
)
from sandkeep.events.codec import GENESIS

from .support import Replica, done

STREAMS = st.sampled_from(["task/a", "task/ab", "keep"])


class Stepped(Event, frozen=True):
    """What the machine's own type of event is now: version 3. It was `{"to": ...}`, then `{"path": ...}`."""

    path: str
    steps: int = 1


def old(version: int, text: str) -> Event:
    """An event as an older or a later version of the library wrote it."""
    field = {1: "to", 2: "path"}.get(version, "later")
    return UnknownEvent("Stepped", version, msgspec.msgpack.encode({field: text}))


def stepped(text: str) -> Event:
    return Stepped(text)


EVENT = st.builds(
    lambda make, text: make(text),
    st.sampled_from([lambda text: done(text)[0], stepped, partial(old, 1), partial(old, 2), partial(old, 9)]),
    st.sampled_from("xyz"),
)
EVENTS = st.lists(EVENT, min_size=1, max_size=3)

PRESENT = {1: "to", 2: "path"}


class Row(NamedTuple):
    stream: str
    revision: int
    type: str
    version: int
    body: bytes

    @classmethod
    def of(cls, record: Record) -> Row:
        return cls(record.stream, record.revision, record.type, record.version, bytes(record.data))

    @property
    def event(self) -> Event:
        """As it is to be read now."""
        if self.type == "Stepped" and self.version in PRESENT:
            return Stepped(msgspec.msgpack.decode(self.body)[PRESENT[self.version]])
        return schema.decode(self.type, self.version, self.body)


class Use(NamedTuple):
    """What a key was used for."""

    stream: str
    key: str
    events: list[Event]
    receipt: Receipt


class Refused(Exception):
    pass


class LogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.rows: list[Row] = []
        self.uses: list[Use] = []
        self.now = 1000
        self.used = 0
        self._registries = {name: dict(getattr(schema, name)) for name in ("_decoders", "_names", "_upcasters")}
        event(version=3)(Stepped)
        upcast("Stepped", from_version=1)(lambda fields: {"path": fields["to"]})
        upcast("Stepped", from_version=2)(dict)

    @initialize()
    def open(self) -> None:
        self.log: LmdbLog[list[Record]] = LmdbLog(
            self.folder / "log",
            follower=Replica(),
            journal=self.folder / "journal",
            clock=lambda: self.now,
            segment_bytes=3000,
        )

    def teardown(self) -> None:
        self.log.close()
        shutil.rmtree(self.folder)
        for name, registry in self._registries.items():
            setattr(schema, name, registry)

    def keys(self) -> int:
        """A number for a key that was never used."""
        self.used += 1
        return self.used

    def revision(self, stream: str) -> int:
        return sum(row.stream == stream for row in self.rows)

    def take(self, stream: str, events: list[Event]) -> None:
        """Take the events into the model."""
        revision = self.revision(stream)
        self.rows += [Row(stream, revision + 1 + i, *schema.encode(event)) for i, event in enumerate(events)]

    def expect(self, receipt: Receipt, stream: str, events: list[Event], key: str | None) -> None:
        """Take the events into the model, and check their receipt."""
        first = len(self.rows) + 1
        self.take(stream, events)
        assert (receipt.first, receipt.last, receipt.revision) == (first, len(self.rows), self.revision(stream))
        assert not receipt.repeated
        if key is not None:
            self.uses.append(Use(stream, key, events, receipt))

    @rule(by=st.integers(-50, 50))
    def set_the_clock(self, by: int) -> None:
        self.now += by

    @rule(stream=STREAMS, events=EVENTS, expecting=st.booleans(), keyed=st.booleans(), fenced=st.booleans())
    def append(self, stream: str, events: list[Event], expecting: bool, keyed: bool, fenced: bool) -> None:
        key = f"key {self.keys()}" if keyed else None
        expected = self.revision(stream) if expecting else None
        fence = len(self.rows) if fenced and self.rows else None
        self.expect(
            self.log.append(stream, events, actor="me", expected=expected, key=key, fence=fence),
            stream,
            events,
            key,
        )

    @rule(stream=STREAMS, events=EVENTS, off=st.sampled_from([-2, -1, 1, 5]))
    def append_to_another_revision(self, stream: str, events: list[Event], off: int) -> None:
        with pytest.raises(RevisionConflict):
            self.log.append(stream, events, actor="me", expected=self.revision(stream) + off, key="stale")

    @precondition(lambda self: self.uses)
    @rule(data=st.data(), deciding=st.booleans())
    def repeat_a_key(self, data: st.DataObject, deciding: bool) -> None:
        use = data.draw(st.sampled_from(self.uses))
        if deciding:
            receipt = self.log.decide(use.stream, lambda view: done("never"), actor="you", key=use.key)
        else:
            receipt = self.log.append(use.stream, use.events, actor="you", expected=0, key=use.key)
        assert receipt == msgspec.structs.replace(use.receipt, repeated=True)

    @precondition(lambda self: self.uses)
    @rule(data=st.data(), more=EVENTS)
    def reuse_a_key_for_other_events(self, data: st.DataObject, more: list[Event]) -> None:
        use = data.draw(st.sampled_from(self.uses))
        with pytest.raises(KeyReused):
            self.log.append(use.stream, [*use.events, *more], actor="me", key=use.key)

    @rule(stream=STREAMS, events=EVENTS, keyed=st.booleans())
    def decide(self, stream: str, events: list[Event], keyed: bool) -> None:
        def decider(view: list[Record]) -> list[Event]:
            assert [(r.stream, r.revision) for r in view] == [row[:2] for row in self.rows]
            return events

        key = f"key {self.keys()}" if keyed else None
        self.expect(self.log.decide(stream, decider, actor="me", key=key), stream, events, key)

    @rule(stream=STREAMS, refusing=st.booleans())
    def decide_nothing(self, stream: str, refusing: bool) -> None:
        def decider(view: list[Record]) -> list[Event]:
            if refusing:
                raise Refused
            return []

        if refusing:
            with pytest.raises(Refused):
                self.log.decide(stream, decider, actor="me", key="unused")
        else:
            receipt = self.log.decide(stream, decider, actor="me", key="unused")
            wanted = (len(self.rows) + 1, len(self.rows), self.revision(stream))
            assert (receipt.first, receipt.last, receipt.revision) == wanted

    @rule()
    def reopen(self) -> None:
        self.log.close()
        self.open()

    @invariant()
    def the_log_equals_the_list(self) -> None:
        records = list(self.log.read())
        assert [Row.of(r) for r in records] == self.rows
        assert [r.event for r in records] == [row.event for row in self.rows]
        assert [r.position for r in records] == list(range(1, len(self.rows) + 1))
        times = [r.time_ns for r in records]
        assert times == sorted(times)

    @invariant()
    def each_stream_equals_its_part_of_the_list(self) -> None:
        for stream in ("task/a", "task/ab", "keep"):
            mine = [row for row in self.rows if row.stream == stream]
            assert [Row.of(r) for r in self.log.read_stream(stream)] == mine
            assert [row.revision for row in mine] == list(range(1, len(mine) + 1))

    @invariant()
    def the_head_is_the_end_of_the_list(self) -> None:
        head = self.log.head()
        assert head.position == len(self.rows)
        assert (head.checksum == GENESIS) == (not self.rows)
        assert head.time_ns == max((r.time_ns for r in self.log.read()), default=0)
