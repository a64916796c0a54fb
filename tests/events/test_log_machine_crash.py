"""The machine of `test_log_machine`, and what happens to a log meanwhile: subscribers, crashes, damage and recovery.

A crash is simulated by going on in a copy of the keep's files, taken while they are open, at a moment of an append or
of a handler: what a kill leaves, because the page cache survives it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from sandkeep.events import Bus, Event, Record, Subscription, SubscriptionDamaged, segment
from sandkeep.events.catalogue import LogRecovered
from sandkeep.events.errors import RecoveryRefused
from sandkeep.events.recovery import Mode, Recovery, recover

from ..crash.support import LONG
from .support import wait_until
from .test_log_machine import EVENTS, STREAMS, LogMachine, Row

Moment = Literal["idle", "before the commit", "behind the commit"]
MOMENTS = st.sampled_from(["idle", "before the commit", "behind the commit"])
TAILS = st.sampled_from(["whole", "torn", "short"])
MOST_RECOVERIES = 6 if LONG else 1


class Live:
    """A subscriber of the bus, and what it was given."""

    def __init__(self, bus: Bus, after: int | None, begin: int) -> None:
        self.begin = begin
        self.records: list[Record] = []
        source = bus.live() if after is None else bus.catch_up(after)
        self._subscription = source.subscribe(self.records.append)

    def wait(self, rows: list[Row]) -> None:
        """Until it was given as much as there is."""
        wait_until(lambda: len(self.records) >= len(rows) - self.begin)

    def leave(self, rows: list[Row]) -> None:
        """Go, having been given all behind where it began, in order."""
        self.wait(rows)
        self._subscription.dispose()
        assert [record.position for record in self.records] == list(range(self.begin + 1, len(rows) + 1))
        assert [Row.of(record) for record in self.records] == rows[self.begin :]


class KeepMachine(LogMachine):
    def __init__(self) -> None:
        super().__init__()
        self.bus: Bus | None = None
        self.live: list[Live] = []
        self.stored = 0
        self.handled = 0
        self.lost = False
        self.recoveries = 0

    def teardown(self) -> None:
        try:
            self.leave_all()
        finally:
            super().teardown()

    def reopen(self) -> None:
        self.leave_all()
        super().reopen()

    # Those who follow.

    @precondition(lambda self: len(self.live) < 3)
    @rule(data=st.data(), history=st.booleans())
    def subscribe(self, data: st.DataObject, history: bool) -> None:
        if self.bus is None:
            self.bus = Bus(self.log, poll_seconds=0.01)
        after = data.draw(st.integers(0, len(self.rows))) if history else None
        self.live.append(Live(self.bus, after, len(self.rows) if after is None else after))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def unsubscribe(self, data: st.DataObject) -> None:
        self.live.pop(data.draw(st.integers(0, len(self.live) - 1))).leave(self.rows)

    def leave_all(self) -> None:
        """End the bus, when all who follow have been given everything."""
        try:
            while self.live:
                self.live.pop().leave(self.rows)
        finally:
            if self.bus is not None:
                self.bus.close()
                self.bus = None

    def pull(self, count: int, on_a_loop: bool, last: Callable[[], None]) -> None:
        """Let the durable subscription deal with the next `count` records, and do `last` at the last of them."""
        got: list[Record] = []

        def handle(record: Record) -> None:
            got.append(record)
            if len(got) == count:
                last()
                subscription.stop()

        subscription = Subscription(self.log, self.folder / "subscriptions", "machine", handle, poll_seconds=0.01)
        if self.lost:
            with pytest.raises(SubscriptionDamaged, match="it has lost its end"):
                subscription.run()
            self.begin_anew()
        if on_a_loop:
            asyncio.run(subscription.run_async())
        else:
            subscription.run()
        first = got[0].position
        assert self.stored < first <= self.handled + 1
        assert [record.position for record in got] == list(range(first, first + count))
        assert [Row.of(record) for record in got] == self.rows[first - 1 : first - 1 + count]
        self.handled = max(self.handled, got[-1].position)
        self.stored = first - 1

    @precondition(lambda self: self.stored < len(self.rows))
    @rule(data=st.data(), on_a_loop=st.booleans())
    def consume(self, data: st.DataObject, on_a_loop: bool) -> None:
        count = data.draw(st.integers(1, len(self.rows) - self.handled or 1))
        self.pull(count, on_a_loop, lambda: None)
        self.stored += count

    @precondition(lambda self: self.stored < len(self.rows))
    @rule(data=st.data())
    def crash_in_a_handler(self, data: st.DataObject) -> None:
        """What was dealt with since the position was stored is given again."""
        copies: list[Path] = []
        count = data.draw(st.integers(1, len(self.rows) - self.handled or 1))
        self.pull(count, False, lambda: copies.append(self.copy()))
        self.go_on_in(copies[0])

    # Crashes.

    def copy(self) -> Path:
        """The files as they are now."""
        journal = self.log._journal
        assert journal is not None
        if journal._compressor is not None:
            journal._compressor.join()
        return Path(shutil.copytree(self.folder, Path(tempfile.mkdtemp()) / "keep"))

    def go_on_in(self, copy: Path) -> None:
        self.leave_all()
        self.log.close()
        shutil.rmtree(self.folder)
        shutil.move(copy, self.folder)
        copy.parent.rmdir()
        self.open()

    @rule(moment=MOMENTS, tail=TAILS, stream=STREAMS, events=EVENTS, keyed=st.booleans())
    def crash(self, moment: Moment, tail: str, stream: str, events: list[Event], keyed: bool) -> None:
        key = f"key {self.keys()}" if keyed else None
        before = list(self.rows)
        copies: list[Path] = []
        if moment == "idle":
            copies.append(self.copy())
        else:
            self.copying(moment, copies)
            self.expect(self.log.append(stream, events, actor="me", key=key), stream, events, key)
        self.end_of_journal(copies[0], tail)
        self.go_on_in(copies[0])
        if moment == "before the commit":
            self.rows = before
            self.uses = [use for use in self.uses if use.key != key]

    def copying(self, moment: Moment, copies: list[Path]) -> None:
        """Copy the files at this moment of the next append."""
        log: Any = self.log
        if moment == "behind the commit":
            log.listen(lambda: copies.append(self.copy()))
            return
        write = log._journal.write

        def writing(*arguments: object) -> None:
            write(*arguments)
            copies.append(self.copy())

        log._journal.write = writing

    def end_of_journal(self, folder: Path, tail: str) -> None:
        """Leave half of the journal's last line, or take away some lines, as if they had not been written."""
        path = segment.listed(folder / "journal")[-1]
        lines = [] if path.suffix == ".zst" else path.read_bytes().splitlines(keepends=True)
        if len(lines) < 2 or tail == "whole":
            return
        kept = len(lines) // 2 + 1
        if tail == "short":
            path.write_bytes(b"".join(lines[:kept]))
        else:
            path.write_bytes(b"".join([*lines[:-1], lines[-1][: len(lines[-1]) // 2]]))

    # Damage, and recovery.

    @precondition(lambda self: self.rows and self.recoveries < MOST_RECOVERIES)
    @rule(data=st.data(), where=st.sampled_from(["nowhere", "log", "journal", "both"]), mode=st.sampled_from(Mode))
    def recover(self, data: st.DataObject, where: str, mode: Mode) -> None:
        self.recoveries += 1
        self.leave_all()
        self.log.close()
        backup = shutil.copytree(self.folder, Path(tempfile.mkdtemp()) / "keep")
        if where in ("log", "both"):
            self.hurt(data, self.folder / "log" / "data.mdb", whole=True)
        if where in ("journal", "both"):
            segments = segment.listed(self.folder / "journal")
            self.hurt(data, segments[data.draw(st.integers(0, len(segments) - 1))], whole=where == "journal")
        done = self.recovered(mode, where)
        if done is None:
            shutil.rmtree(self.folder)
            shutil.copytree(backup, self.folder)
        shutil.rmtree(backup.parent)
        if done is None:
            self.open()
            return
        if done.recovered:
            # That an end is lost which neither copy shows any more cannot be told; `strict` loses nothing knowingly.
            assert done.kept == len(self.rows) or where == "both"
            assert done.mode != Mode.STRICT or not (done.lost or done.salvaged)
            assert done.ok == (not (done.lost or done.salvaged))
            self.lose(done.kept)
        else:
            assert (where != "journal") <= (done.kept == len(self.rows))
        self.open()
        if done.recovered:
            event = LogRecovered(
                done.mode, done.source, done.kept, done.lost, done.salvaged, Path(done.quarantine or "").name
            )
            self.take("keep", [event])
        assert self.log.head().position == done.head == len(self.rows)

    def recovered(self, mode: Mode, where: str) -> Recovery | None:
        """Recover; what is refused, because both copies are hurt, is left as it is, and then allowed. None if neither
        can be read at all."""
        files = self.files()
        try:
            return recover(self.folder, mode, actor="doctor")
        except RecoveryRefused as error:
            assert where == "both"
            assert self.files() == files
            if "can be read at all" in str(error):
                return None
            assert mode == Mode.STRICT
        return self.recovered(Mode.TRUNCATE_TAIL, where)

    def files(self) -> dict[Path, bytes]:
        """What all files hold but LMDB's locks, which readers write to."""
        found = (path for path in self.folder.rglob("*") if path.is_file() and path.name != "lock.mdb")
        return {path: path.read_bytes() for path in found}

    def hurt(self, data: st.DataObject, path: Path, *, whole: bool) -> None:
        """Change some bytes of a file, or take away its end, or (`whole`) all of it."""
        size = path.stat().st_size
        # Sizes are not the same each time, so what is drawn must not depend on them.
        part = data.draw(st.integers(0, 2**20 - 1)) / 2**20
        how = data.draw(st.sampled_from(["bytes", "end", *(["all"] if whole else [])]))
        if how == "all":
            path.unlink()
        elif how == "end":
            os.truncate(path, size // 2 + int(part * (size - size // 2)))
        else:
            begin = int(part * size)
            with open(path, "r+b") as file:
                file.seek(begin)
                content = file.read(data.draw(st.sampled_from([1, 100, 4096])))
                file.seek(begin)
                file.write(bytes(byte ^ 0x55 for byte in content))

    def lose(self, kept: int) -> None:
        """The log ends at `kept` now, so the model does, and who was further has to begin anew."""
        self.rows = self.rows[:kept]
        self.uses = [use for use in self.uses if use.receipt.last <= kept]
        self.lost = self.lost or self.stored > kept
        if not self.lost and self.handled > kept:  # its position may have been stored further than the model knows
            self.begin_anew()
        self.handled = min(self.handled, kept)
        self.stored = min(self.stored, kept)

    def begin_anew(self) -> None:
        """As a durable subscription is told to that has dealt with what is lost."""
        self.lost, self.stored, self.handled = False, 0, 0
        (self.folder / "subscriptions" / "machine").unlink()

    @invariant()
    def the_live_ones_are_given_everything(self) -> None:
        for each in self.live:
            each.wait(self.rows)
            assert [record.position for record in each.records] == list(range(each.begin + 1, len(self.rows) + 1))


TestLog = KeepMachine.TestCase
TestLog.settings = settings(
    max_examples=300 if LONG else 20,
    stateful_step_count=40 if LONG else 25,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink an example would take minutes of recoveries
)
