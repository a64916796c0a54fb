"""A task's memory folder: its record for people and agents to read, mounted read-only at /memory (see `pages`).

It follows the log; nothing is read from it but to see whether it is still what was written. Whoever stores what came of
something in a task brings the folder up to date (`trail`; after commands beside the work: `trailing`), and so does
whoever runs `follow` as a durable subscription. That costs what is new: two pages are appended to, the others are
written under a temporary name, synced and renamed.

Concurrency. One writer at a time, over all threads and processes: the folder itself is locked (`flock`).

Crashes. Pages are written in an order in which state.json never says more than the others hold. A *mark* beside the
folder says how far it has come and what the files were then (inode, size, times). If it does not fit, because of a
crash, another boot or somebody's hand, everything is compared with what the log makes of it. An end that was being
written is cut and completed. What is otherwise not as written goes to `quarantine/`, is made anew, and stands as
`MemoryRepaired` in the log. A change that keeps size and times is found by `check` and `rebuild`. plan.md is anybody's
to edit: it is not touched any more when it is not what we wrote.

Every file is opened through the folder's descriptor, and no link is followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

import msgspec
from blake3 import blake3

from sandkeep.events import Record, SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.events.journal import this_boot
from sandkeep.events.quarantine import Quarantine
from sandkeep.projections import Registry, registry
from sandkeep.sandboxes import decider, pages
from sandkeep.sandboxes.errors import MemoryUnavailable
from sandkeep.sandboxes.page_file import TEMPORARY, Compared, Page, cut
from sandkeep.sandboxes.pages import DECISIONS, LOG, PLAN, STATE, Recall

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_logger = logging.getLogger(__name__)

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_STATE_BYTES = 1 << 20

Signature = tuple[int, int, int, int]


class Refreshed(msgspec.Struct, frozen=True):
    """What a memory folder holds now: all up to `revision` of its task, which is at `position` of the log.

    `damage` has a line for each page that was not what had been written; what was there is in `quarantine`.
    """

    task: str
    revision: int
    position: int
    damage: tuple[str, ...] = ()
    quarantine: str | None = None


class _Mark(msgspec.Struct, frozen=True):
    identity: tuple[str, str, str, int, int]
    recall: Recall
    seen: dict[str, Signature]
    plan_is_ours: bool


class _Judged(msgspec.Struct, frozen=True):
    """What the pages are, compared with the log. `recall` is what they hold; None if they are to be made anew."""

    recall: Recall | None
    damaged: dict[str, str]
    plan_is_ours: bool


def trail(keep: Keep, task_id: str) -> None:
    """Bring the folder up to date, if there is one. That this fails holds nothing up: it is logged, and the next who
    does something in the task tries again."""
    try:
        refresh(keep, task_id)
    except (SandkeepError, OSError) as error:
        _logger.warning("the memory folder of task %s is out of date: %s", task_id, error)


def follow(keep: Keep) -> Callable[[Record], None]:
    """A handler for a durable subscription, which keeps the folders of all tasks up to date."""

    def handle(record: Record) -> None:
        if record.stream.startswith(registry.STREAM):
            refresh(keep, record.stream.removeprefix(registry.STREAM))

    return handle


def refresh(keep: Keep, task_id: str) -> Refreshed | None:
    """Bring the folder up to the head of the log; None if the task has no folder (any more).

    Raises what reading the log raises, and `OSError`; the folder is then brought up to date the next time.
    """
    with _alone(keep, task_id) as folder:
        return None if folder is None else folder.refresh(anew=False)


def rebuild(keep: Keep, task_id: str) -> Refreshed:
    """Make all pages anew, but a plan that was edited. Raises `MemoryUnavailable`."""
    try:
        with _alone(keep, task_id) as folder:
            if folder is not None:
                return folder.refresh(anew=True)
    except OSError as error:
        raise MemoryUnavailable(
            f"the memory folder of task {task_id} cannot be written: {error.strerror}; see that it is a folder of its"
            " own with room for more, then try again"
        ) from error
    raise MemoryUnavailable(f"task {task_id} has no memory folder; it is gone once a task is cleaned up")


def check(keep: Keep, task_id: str) -> tuple[str, ...]:
    """A line for each page that is not what was written, all of it read. Nothing is changed."""
    try:
        with _alone(keep, task_id) as folder:
            return () if folder is None else tuple(folder.judge(folder.mark() is not None).damaged.values())
    except OSError as error:
        return (f"the folder cannot be read: {error.strerror}",)


@contextlib.contextmanager
def closed(folder: Path) -> Iterator[None]:
    """Nobody else works on the memory folder in the task's `folder`, if there is one: it may be removed."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # it is gone, or no folder at all
            descriptor = os.open(folder / "memory", _FOLDER)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _alone(keep: Keep, task_id: str) -> Iterator[_Folder | None]:
    path = keep.path / "tasks" / task_id
    try:
        descriptor = os.open(path / "memory", _FOLDER)
    except FileNotFoundError:
        yield None
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Whoever removed it meanwhile held the lock.
        yield _Folder(keep, task_id, path, descriptor) if os.fstat(descriptor).st_nlink else None
    finally:
        os.close(descriptor)


@final
class _Folder:
    """A memory folder, open and locked."""

    def __init__(self, keep: Keep, task_id: str, path: Path, descriptor: int) -> None:
        self._keep = keep
        self._task = task_id
        self._path = path
        self._folder = descriptor
        log = keep.log
        self._identity = (this_boot(), log.log_id.hex(), log.incarnation.hex(), pages.FORMAT, Registry.version)

    def refresh(self, *, anew: bool) -> Refreshed:
        mark = self.mark()
        if mark is not None and not anew and self._fits(mark):
            recall, plan_is_ours = mark.recall, mark.plan_is_ours
            damage: dict[str, str] = {}
        else:
            judged = self.judge(mark is not None)
            recall, plan_is_ours, damage = judged.recall or Recall(self._task), judged.plan_is_ours, judged.damaged
            anew = anew or judged.recall is None
            mark = None
        quarantine = self._set_aside(damage) if damage else None
        if mark is None:
            self._prepare(recall, anew)
        found = self._write(Recall(self._task) if anew else recall, anew, mark, plan_is_ours)
        return Refreshed(self._task, found.revision, found.position, tuple(damage.values()), quarantine)

    def mark(self) -> _Mark | None:
        """What was left here the last time, by this version of the library and under this boot; None if not known."""
        try:
            stored = (self._path / "memory.mark").read_bytes()
            size, digest = _SEAL.unpack_from(stored)
            data = stored[_SEAL.size : _SEAL.size + size]
            mark = _decode(data)
        except (FileNotFoundError, struct.error, msgspec.DecodeError, UnicodeDecodeError):
            return None
        return mark if blake3(data).digest() == digest and mark.identity == self._identity else None

    def judge(self, marked: bool) -> _Judged:
        """Compare all pages with what the log makes of them; `marked` says that they were all there once."""
        with contextlib.ExitStack() as stack:
            state = Compared(stack, self._folder, STATE)
            page = state.read(_MOST_STATE_BYTES)
            claim = pages.claimed(page)
            trails = {name: Compared(stack, self._folder, name) for name in (LOG, DECISIONS)}
            recall = Recall(self._task)
            at = recall if claim == (pages.FORMAT, 0) else None
            plans = _Plans(recall)
            for record in self._records(0):
                before = recall
                recall, *pieces = pages.advance(recall, record)
                for trail, piece in zip(trails.values(), pieces, strict=True):
                    trail.take(piece)
                if recall.plan != before.plan:
                    plans.add(recall)
                if claim is not None and recall.revision == claim[1]:
                    at = recall
            plan = Compared(stack, self._folder, PLAN)
            ours = plan.missing or plan.read(plans.longest + 1) in plans
            if claim is not None and claim[0] != pages.FORMAT:
                return _Judged(None, {}, ours)  # of another version of the library, and so are the others
            damaged: dict[str, str] = {}
            if state.missing and marked:
                damaged[STATE] = f"{STATE} is gone"
            elif not state.missing and (at is None or page != pages.state_page(at)):
                damaged[STATE] = f"{STATE} is not what was written"
            for name, trail in trails.items():
                least = 0 if at is None else (at.log if name == LOG else at.decisions).bytes
                if trail.broken():
                    damaged[name] = f"{name} is not what was written"
                elif trail.missing and (marked or at is not None):
                    damaged[name] = f"{name} is gone"
                elif trail.bytes < least:
                    damaged[name] = f"{name} is cut short"
            return _Judged(None if damaged else at, damaged, ours)

    def _fits(self, mark: _Mark) -> bool:
        """Whether the files are those that the mark was made for; a plan that is not ours does not count."""
        return all(self._signature(name) == mark.seen.get(name) for name in _watched(mark.plan_is_ours))

    def _signature(self, name: str) -> Signature | None:
        try:
            found = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _set_aside(self, damaged: dict[str, str]) -> str | None:
        """Keep what is damaged, and put it on record. Returns the name of its folder, if there was anything."""
        quarantine = Quarantine(self._keep.path / "quarantine")
        present = [name for name in damaged if self._signature(name) is not None]
        for name in present:
            quarantine.take(Path(f"/proc/self/fd/{self._folder}") / name)
        kept = quarantine.folder.name if present else None
        event = ev.MemoryRepaired(tuple(damaged.values()), kept)
        self._keep.decide(self._task, partial(decider.record, event=event))
        _logger.warning("the memory folder of task %s was made anew: %s", self._task, "; ".join(damaged.values()))
        return kept

    def _prepare(self, recall: Recall, anew: bool) -> None:
        """Make the folder fit to go on from `recall`, or to be filled anew."""
        # A mark that does not fit any more would make what a crash leaves look like damage.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path / "memory.mark")
        for name in os.listdir(self._folder):
            if name.startswith(TEMPORARY):
                os.unlink(name, dir_fd=self._folder)
        if not anew:
            for name, trail in ((LOG, recall.log), (DECISIONS, recall.decisions)):
                cut(self._folder, name, trail.bytes)

    def _write(self, begin: Recall, anew: bool, mark: _Mark | None, plan_is_ours: bool) -> Recall:
        """Write what the log has behind `begin`. `mark` is given when nothing has to be set right."""
        recall = begin
        with contextlib.ExitStack() as stack:
            files = [Page(stack, self._folder, name, anew) for name in (LOG, DECISIONS)]
            for record in self._records(begin.revision):
                recall, *pieces = pages.advance(recall, record)
                for file, piece in zip(files, pieces, strict=True):
                    file.write(piece)
            for file in files:
                file.finish()
        if anew:
            os.fsync(self._folder)  # before a state.json that speaks of them
        if mark is not None and not plan_is_ours and self._signature(PLAN) is None:
            plan_is_ours = True  # whoever had edited it has removed it
        elif mark is not None and recall.revision == begin.revision:
            return recall
        if plan_is_ours:
            self._replace(PLAN, pages.plan_page(recall))
        self._replace(STATE, pages.state_page(recall))
        seen = {name: self._signature(name) or (0, 0, 0, 0) for name in _watched(plan_is_ours)}
        self._store(_Mark(self._identity, recall, seen, plan_is_ours))
        return recall

    def _store(self, mark: _Mark) -> None:
        data = _encode(mark)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path / "memory.mark", flags, 0o600)
        try:
            # Over what is there: file systems flush a file that is emptied first when it is closed.
            os.pwrite(descriptor, _SEAL.pack(len(data), blake3(data).digest()) + data, 0)
        finally:
            os.close(descriptor)

    def _replace(self, name: str, content: bytes) -> None:
        """Make `content` the page `name`, unless it is that already."""
        with contextlib.ExitStack() as stack:
            if Compared(stack, self._folder, name).read(len(content) + 1) == content:
                return
            page = Page(stack, self._folder, name, anew=True)
            page.write(content)
            page.finish()

    def _records(self, after: int) -> Iterator[Record]:
        return self._keep.log.read_stream(registry.STREAM + self._task, after)


@final
class _Plans:
    """Every plan that a stream has given so far, by digest."""

    def __init__(self, recall: Recall) -> None:
        self._digests: set[bytes] = set()
        self.longest = 0
        self.add(recall)

    def add(self, recall: Recall) -> None:
        page = pages.plan_page(recall)
        self._digests.add(blake3(page).digest())
        self.longest = max(self.longest, len(page))

    def __contains__(self, page: bytes) -> bool:
        return blake3(page).digest() in self._digests


_SEAL = struct.Struct(">Q32s")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Mark).decode


def _watched(plan_is_ours: bool) -> tuple[str, ...]:
    return (LOG, DECISIONS, STATE, PLAN) if plan_is_ours else (LOG, DECISIONS, STATE)
