"""Any sequence of calls leaves the log as a plain list would be."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandkeep.events import Event, KeyReused, LmdbLog, Receipt, Record, RevisionConflict
from sandkeep.events.codec import GENESIS

from .support import Replica, done, words

STREAMS = st.sampled_from(["task/a", "task/ab", "keep"])
TEXTS = st.lists(st.sampled_from("xyz"), min_size=1, max_size=3)


class Row(NamedTuple):
    stream: str
    revision: int
    text: str


class Use(NamedTuple):
    """What a key was used for."""

    stream: str
    key: str
    texts: list[str]
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

    @initialize()
    def open(self) -> None:
        self.log: LmdbLog[list[Record]] = LmdbLog(self.folder, follower=Replica(), clock=lambda: self.now)

    def teardown(self) -> None:
        self.log.close()
        shutil.rmtree(self.folder)

    def revision(self, stream: str) -> int:
        return sum(row.stream == stream for row in self.rows)

    def expect(self, receipt: Receipt, stream: str, texts: list[str], key: str | None) -> None:
        """Take the events into the model, and check their receipt."""
        first = len(self.rows) + 1
        self.rows += [Row(stream, self.revision(stream) + 1 + number, text) for number, text in enumerate(texts)]
        assert (receipt.first, receipt.last, receipt.revision) == (first, len(self.rows), self.revision(stream))
        assert not receipt.repeated
        if key is not None:
            self.uses.append(Use(stream, key, texts, receipt))

    @rule(by=st.integers(-50, 50))
    def set_the_clock(self, by: int) -> None:
        self.now += by

    @rule(stream=STREAMS, texts=TEXTS, expecting=st.booleans(), keyed=st.booleans(), fenced=st.booleans())
    def append(self, stream: str, texts: list[str], expecting: bool, keyed: bool, fenced: bool) -> None:
        key = f"key {len(self.uses)}" if keyed else None
        expected = self.revision(stream) if expecting else None
        fence = len(self.rows) if fenced and self.rows else None
        self.expect(
            self.log.append(stream, done(*texts), actor="me", expected=expected, key=key, fence=fence),
            stream,
            texts,
            key,
        )

    @rule(stream=STREAMS, texts=TEXTS, off=st.sampled_from([-2, -1, 1, 5]))
    def append_to_another_revision(self, stream: str, texts: list[str], off: int) -> None:
        with pytest.raises(RevisionConflict):
            self.log.append(stream, done(*texts), actor="me", expected=self.revision(stream) + off, key="stale")

    @precondition(lambda self: self.uses)
    @rule(data=st.data(), deciding=st.booleans())
    def repeat_a_key(self, data: st.DataObject, deciding: bool) -> None:
        use = data.draw(st.sampled_from(self.uses))
        if deciding:
            receipt = self.log.decide(use.stream, lambda view: done("never"), actor="you", key=use.key)
        else:
            receipt = self.log.append(use.stream, done(*use.texts), actor="you", expected=0, key=use.key)
        assert receipt == msgspec.structs.replace(use.receipt, repeated=True)

    @precondition(lambda self: self.uses)
    @rule(data=st.data(), more=TEXTS)
    def reuse_a_key_for_other_events(self, data: st.DataObject, more: list[str]) -> None:
        use = data.draw(st.sampled_from(self.uses))
        with pytest.raises(KeyReused):
            self.log.append(use.stream, done(*use.texts, *more), actor="me", key=use.key)

    @rule(stream=STREAMS, texts=TEXTS, keyed=st.booleans())
    def decide(self, stream: str, texts: list[str], keyed: bool) -> None:
        def decider(view: list[Record]) -> list[Event]:
            assert [(r.stream, r.revision) for r in view] == [row[:2] for row in self.rows]
            return done(*texts)

        key = f"key {len(self.uses)}" if keyed else None
        self.expect(self.log.decide(stream, decider, actor="me", key=key), stream, texts, key)

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
        assert [(r.stream, r.revision) for r in records] == [row[:2] for row in self.rows]
        assert words(records) == [row.text for row in self.rows]
        assert [r.position for r in records] == list(range(1, len(self.rows) + 1))
        times = [r.time_ns for r in records]
        assert times == sorted(times)

    @invariant()
    def each_stream_equals_its_part_of_the_list(self) -> None:
        for stream in ("task/a", "task/ab", "keep"):
            records = list(self.log.read_stream(stream))
            assert [r.revision for r in records] == list(range(1, self.revision(stream) + 1))
            assert words(records) == [row.text for row in self.rows if row.stream == stream]

    @invariant()
    def the_head_is_the_end_of_the_list(self) -> None:
        head = self.log.head()
        assert head.position == len(self.rows)
        assert (head.checksum == GENESIS) == (not self.rows)
        assert head.time_ns == max((r.time_ns for r in self.log.read()), default=0)


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
