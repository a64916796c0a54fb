"""A damaged log made whole again, from itself and its journal.

The suspect log is only read by a process of its own (see `suspect`), which may die of it; what it told before counts,
because every frame proves itself. Both copies are merged frame by frame into a new log beside the old one: at each
position the frame that follows the one before it. Then, in this order, the files that were there go to
`quarantine/<time>/`, the new one takes the old one's name in one step, and a journal that does not agree with it is set
aside too, to be written anew. Nothing is deleted, and a crash at any point leaves either the old state or the new one.

    strict         refuse unless all that is known to have been there is rebuilt
    truncate-tail  keep all up to the first position that no copy has whole
    salvage        the same, and write every frame behind it that proves itself to `quarantine/<time>/salvaged.jsonl`

Positions have no gaps and each checksum covers the one before, so nothing behind a loss can stay in the log unchanged.

Nobody else may have the log open meanwhile; nobody can open it either.
"""

from __future__ import annotations

import contextlib
import enum
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import final

import lmdb
import msgspec

from sandkeep.events import catalogue as ev
from sandkeep.events import codec, journal, segment
from sandkeep.events.catalogue import Span
from sandkeep.events.codec import Frame
from sandkeep.events.durable import sync_folder
from sandkeep.events.errors import LogDamaged, LogUnavailable, RecoveryRefused
from sandkeep.events.lmdb_log import LmdbLog
from sandkeep.events.quarantine import Quarantine
from sandkeep.events.rebuild import Rebuild
from sandkeep.events.segment import Entry
from sandkeep.events.suspect import Suspect
from sandkeep.events.verify import MAX_DAMAGE, verify


class Mode(enum.StrEnum):
    """What a recovery may lose."""

    STRICT = "strict"
    TRUNCATE_TAIL = "truncate-tail"
    SALVAGE = "salvage"


class Recovery(msgspec.Struct, frozen=True):
    """What a recovery did. `head` is where the log ends now, `recovered` tells whether anything had to be done.

    `kept`, `lost`, `salvaged` and `source` are as in the event `LogRecovered`; `damage` is what was found.
    """

    ok: bool
    recovered: bool
    mode: str
    source: str
    head: int
    kept: int
    lost: tuple[Span, ...]
    salvaged: tuple[Span, ...]
    quarantine: str | None
    damage: tuple[str, ...]


def recover(root: Path, mode: Mode, *, actor: str) -> Recovery:
    """Recover the log in `root`, whose folders are `log`, `journal` and `quarantine`.

    Raises `LogBusy` if others have it open, `RecoveryRefused` if `mode` does not allow what it takes, with everything
    as it was, and `LogUnavailable` if files cannot be read, written or moved.
    """
    temporary = root / f".recovery-{secrets.token_hex(4)}"
    try:
        with contextlib.ExitStack() as alone:
            alone.callback(os.close, journal.lock(root / "journal", alone=True))
            alone.callback(shutil.rmtree, temporary, ignore_errors=True)
            attempt = _Attempt(root, temporary / "log", mode, actor)
            done = attempt.run()
        if not done.recovered:
            return done
        # Whatever the journal lacks now is completed from the log.
        with closing(LmdbLog[None](root / "log", journal=root / "journal")) as log:
            if not attempt.rebuilt:
                log.append("keep", [attempt.event(done)], actor=actor)
            return msgspec.structs.replace(done, head=log.head().position)
    except (lmdb.Error, OSError) as error:
        raise LogUnavailable(
            f"the log cannot be recovered: {error}; make room or give access, and try again"
        ) from error


@final
class _Copy:
    """The frames of one copy, read one ahead, and what is known of where it ends."""

    def __init__(self, found: Iterator[Frame | LogDamaged]) -> None:
        self._found = found
        self._next: Frame | None = None
        self._taken = True
        self._checksum = codec.GENESIS
        self.last = 0
        self.damage: list[str] = []
        self.damaged_behind = -1

    def at(self, position: int) -> Frame | None:
        """The frame that begins at `position`; positions may only be asked for in order."""
        while (frame := self._peek()) is not None and frame.first < position:
            self._taken = True
        return frame if frame is not None and frame.first == position else None

    def rest(self) -> Iterator[Frame]:
        """All frames that are still to come."""
        while (frame := self._peek()) is not None:
            self._taken = True
            yield frame

    def ends_at(self, position: int) -> bool:
        """Whether it holds all up to `position`, and nothing suggests that there was more. To be asked at its end."""
        return self.last == position > 0 and self.damaged_behind < position

    def _peek(self) -> Frame | None:
        if self._taken:
            self._next, self._taken = self._advance(), False
        return self._next

    def _advance(self) -> Frame | None:
        for found in self._found:
            if isinstance(found, Frame):
                if found.first != self.last + 1 or found.previous != self._checksum:
                    self._note(f"what is stored at position {found.first} does not follow position {self.last}")
                self.last, self._checksum = max(found.last, self.last), found.checksum
                return found
            self._note(str(found))
        return None

    def _note(self, words: str) -> None:
        self.damaged_behind = max(self.damaged_behind, self.last)
        if len(self.damage) < MAX_DAMAGE:
            self.damage.append(words)


@final
class _Attempt:
    """One recovery, while nobody else has the log."""

    def __init__(self, root: Path, new: Path, mode: Mode, actor: str) -> None:
        self._root = root
        self._new = new
        self._mode = mode
        self._actor = actor
        self._aside = Quarantine(root / "quarantine")
        self.rebuilt = False

    def run(self) -> Recovery:
        """Do what has to be done, save for bringing the journal to agree."""
        report = verify(self._root / "log", deep=True)
        segments = segment.listed(self._root / "journal")
        with Suspect(self._root / "log") as suspect:
            log_id = bytes.fromhex(report.log_id) if report.frames else _identify(suspect.log_id, segments)
            log, copy = _Copy(suspect.frames(log_id)), _Copy(_journaled(segments, log_id))
            with closing(Rebuild(self._new, log_id)) as rebuild:
                source, forks = _fill(rebuild, log, copy)
                rest = sorted([*log.rest(), *copy.rest()], key=lambda frame: frame.first)
                forks += rebuild.carry(suspect.notes)
                rebuild.finish()
        kept, checksum = rebuild.position, rebuild.checksum
        damage = [f"log: {words}" for words in dict.fromkeys([*report.damage, *log.damage, suspect.fault]) if words]
        damage += [f"journal: {words}" for words in copy.damage] + forks
        seen = max(kept, log.last, copy.last, suspect.last)
        lost, salvaged = _ranges(kept, seen, rest if self._mode is Mode.SALVAGE else [])
        sure = (log.ends_at(kept) and suspect.fault is None) or copy.ends_at(kept)
        whole = report.ok and (report.head, report.checksum) == (kept, checksum.hex()) and not forks
        agreed = whole and not copy.damage and copy.last == kept
        done = Recovery(
            not (lost or salvaged), not agreed, self._mode, source, kept, kept, lost, salvaged,
            None if agreed else str(self._aside.folder), tuple(damage),
        )  # fmt: skip
        if agreed:
            return done
        if self._mode is Mode.STRICT and not whole and (lost or forks or not sure):
            more = f"{seen - kept} behind it are lost" if lost else "it is not certain that nothing was behind it"
            raise RecoveryRefused(
                f"the log can be rebuilt up to position {kept}, but {forks[0] if forks else more};"
                " allow the loss with --mode truncate-tail or --mode salvage"
            )
        self._aside.keep("recovery.json", msgspec.json.encode(done))
        if salvaged:
            self._aside.keep("salvaged.jsonl", b"".join(map(_line, rest)))
        if not whole:
            self._put_in_place(done)
        if copy.damage or copy.last > kept or forks:
            for path in segments:
                self._aside.take(path)
        return done

    def event(self, done: Recovery) -> ev.LogRecovered:
        """What the log will say of it."""
        folder = self._aside.folder.name
        return ev.LogRecovered(done.mode, done.source, done.kept, done.lost, done.salvaged, folder)

    def _put_in_place(self, done: Recovery) -> None:
        """Give the new log the old one's place; the step in which it takes it is one."""
        with closing(LmdbLog[None](self._new)) as log:
            log.append("keep", [self.event(done)], actor=self._actor)
        old = self._root / "log"
        if old.exists() and not old.is_dir():
            self._aside.take(old)
        old.mkdir(mode=0o700, exist_ok=True)
        for path in sorted(old.iterdir()):
            if path.name == "data.mdb" and path.is_file():
                self._aside.link(path)
            else:
                self._aside.take(path)
        (self._new / "data.mdb").rename(old / "data.mdb")
        sync_folder(old)
        sync_folder(self._root)
        self.rebuilt = True


def _fill(rebuild: Rebuild, log: _Copy, copy: _Copy) -> tuple[str, list[str]]:
    """Add each frame that follows, the log's rather than the journal's; what was used, and where the two differed."""
    used = set()
    forks: list[str] = []
    while True:
        fitting = {
            name: frame
            for name, each in (("log", log), ("journal", copy))
            if (frame := each.at(rebuild.position + 1)) is not None and rebuild.fits(frame)
        }
        if not fitting:
            return " and ".join(name for name in ("log", "journal") if name in used) or "nothing", forks
        if len({frame.checksum for frame in fitting.values()}) > 1 and not forks:
            forks.append(f"log and journal differ at position {rebuild.position + 1}, and both are whole")
        name, frame = next(iter(fitting.items()))
        used.add(name)
        rebuild.add(frame)


def _identify(known: bytes | None, segments: Sequence[Path]) -> bytes:
    """The id of a log without whole frames: the one under which the journal proves itself, or else what it says.

    A log that has whole frames proves its id by them, and a journal that says otherwise is another log's.
    """
    ids = [bytes.fromhex(header.log) for path in segments if (header := segment.header(path)) is not None]
    for log_id in dict.fromkeys([*ids, *([known] if known else [])]):
        for path in segments:
            if any(isinstance(each, Entry) for each in segment.found(path, log_id)):
                return log_id
    if known is None and not ids:
        raise RecoveryRefused("neither the log nor its journal can be read at all; restore the keep from a copy")
    return known or ids[0]


def _journaled(segments: Sequence[Path], log_id: bytes) -> Iterator[Frame | LogDamaged]:
    position, checksum = 0, codec.GENESIS
    for path in segments:
        for each in segment.found(path, log_id):
            match each:
                case Entry(frame=frame):
                    position, checksum = frame.last, frame.checksum
                    yield frame
                case LogDamaged():
                    yield each
                case segment.Header():
                    # A log that goes on with this journal believes its headers, so they have to be right as well.
                    if (each.log, each.first, each.previous) != (log_id.hex(), position + 1, checksum.hex()):
                        yield LogDamaged(f"{path.name}: the header is not that of what follows position {position}")
                case segment.Trailer():
                    pass


def _ranges(kept: int, seen: int, rest: Sequence[Frame]) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """What is lost between `kept` and `seen`, and what of it is salvaged in `rest`."""
    lost: list[Span] = []
    salvaged: list[Span] = []
    position = kept
    for frame in rest:
        if frame.first > position + 1:
            lost.append(Span(position + 1, frame.first - 1))
        if frame.last > position:
            start = max(frame.first, position + 1)
            if salvaged and salvaged[-1].last == start - 1:
                start = salvaged.pop().first
            salvaged.append(Span(start, frame.last))
            position = frame.last
    if position < seen:
        lost.append(Span(position + 1, seen))
    return tuple(lost), tuple(salvaged)


def _line(frame: Frame) -> bytes:
    return segment.encode_line(frame.first, frame.count, 0, frame.previous, frame.checksum, frame.body)
