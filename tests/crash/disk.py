"""A disk that may lose, keep or tear what was not synced, and every state that it can be in when the power fails.

What a program may rely on is what fsync(2), open(2) under O_DSYNC, and rename(2) promise, and no more:

- A sector holds any content that it had since its file was last synced, and each sector by itself. So writes are lost,
  kept and torn, in any order. A file's length is any that it had.
- A synchronous write is on the disk when it returns, and nothing else is.
- A name is on the disk when its folder was synced, not when the file was; until then each change of names may be lost
  by itself. One that moves a file is done as a whole or not at all.
- Owner, mode and time of a file are any that it had since it was last synced, all three together. Syncing its data
  alone (fdatasync(2)) need not keep them. What cannot be opened to be synced, a link or a pipe, is there when its name
  is, and what it has then when the folder is synced.
- What was waiting when a sync failed may never get to the disk, though a later one succeeds (fsync(2), "EIO").
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import final

import msgspec

ROOT = 0
"""The folder that all is in; it is always there."""


class Write(msgspec.Struct, frozen=True, tag=True):
    """Bytes were given to a file; if `synced`, it was a synchronous write and has returned."""

    file: int
    offset: int
    data: bytes
    synced: bool = False


class Resize(msgspec.Struct, frozen=True, tag=True):
    """A file was given a length."""

    file: int
    size: int


class Sync(msgspec.Struct, frozen=True, tag=True):
    """A file or folder was synced, or of a file the `data` alone, or that failed."""

    target: int
    failed: bool = False
    data: bool = False


class SyncAll(msgspec.Struct, frozen=True, tag=True):
    """The whole file system was synced."""


class Status(msgspec.Struct, frozen=True, tag=True):
    """A file or folder was given an owner, mode (with its kind) and modification time."""

    target: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int


class Special(msgspec.Struct, frozen=True, tag=True):
    """A link, to `data`, or a pipe was made; it has no name yet."""

    status: Status
    data: bytes


class Names(msgspec.Struct, frozen=True, tag=True):
    """Names in folders were set, or taken away (None), in one step."""

    changes: tuple[tuple[int, str, int | None], ...]


class Started(msgspec.Struct, frozen=True, tag=True):
    """An append of so many events was asked for."""

    word: str
    count: int


class Acknowledged(msgspec.Struct, frozen=True, tag=True):
    """It was said to be durable, at this position."""

    word: str
    first: int


class Begun(msgspec.Struct, frozen=True, tag=True):
    """All before this was there from the beginning."""


Call = Write | Resize | Sync | SyncAll | Status | Special | Names | Started | Acknowledged | Begun


class Node(msgspec.Struct, frozen=True):
    """A file or a folder (no content): names of the same number are names of one file."""

    number: int
    content: bytes | None
    status: Status | None


State = dict[str, Node]
"""The files and folders of a disk, by their paths, folders before what is in them."""

_STATUS = -1
_Place = tuple[int, int | None]
"""A file, and a sector of it or, if None, its length, or `_STATUS`."""


@final
class _File:
    def __init__(self, sector: int) -> None:
        self._sector = sector
        self._live = bytearray()
        self._durable = bytearray()
        self._stuck: set[int] = set()
        self.pending: dict[int, list[bytes]] = {}
        self.sizes = [0]
        self.statuses: list[Status | None] = [None]
        self.is_special = False

    def make_special(self, status: Status, data: bytes) -> None:
        self.write(0, data)
        self.sync()
        self.statuses, self.is_special = [status], True

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        self._live.extend(bytes(max(0, end - len(self._live))))
        self._live[offset:end] = data
        self._touched(offset, end)

    def resize(self, size: int) -> None:
        old = len(self._live)
        del self._live[size:]
        self._live.extend(bytes(max(0, size - old)))
        self._touched(min(old, size), max(old, size))

    def sync(self, offset: int = 0, end: int | None = None) -> None:
        """Everything, or what a synchronous write wrote."""
        for number in [each for each in self.pending if each not in self._stuck]:
            start = number * self._sector
            if end is None or (offset < start + self._sector and start < end):
                content = self.pending.pop(number)[-1]
                self._durable.extend(bytes(max(0, start + self._sector - len(self._durable))))
                self._durable[start : start + self._sector] = content
        if end is None:
            self.sizes = [len(self._live)]
        else:
            self.sizes = sorted({max(size, end) for size in self.sizes})

    def sync_status(self) -> None:
        del self.statuses[:-1]

    def fail_sync(self) -> None:
        self._stuck.update(self.pending)

    def content(self, size: int, versions: Mapping[int, int]) -> bytes:
        """What it holds with this length, if of each waiting sector the version is there that is named; 0 is the
        durable one."""
        found = bytearray(self._durable)
        found.extend(bytes(max(0, size + self._sector - len(found))))
        for number, version in versions.items():
            if version and number * self._sector < size:
                start = number * self._sector
                found[start : start + self._sector] = self.pending[number][version - 1]
        return bytes(found[:size])

    def _touched(self, start: int, end: int) -> None:
        for number in range(start // self._sector, -(-end // self._sector)):
            content = bytes(self._live[number * self._sector : (number + 1) * self._sector])
            self.pending.setdefault(number, []).append(content.ljust(self._sector, b"\0"))
            self._stuck.discard(number)
        if len(self._live) != self.sizes[-1]:
            self.sizes.append(len(self._live))


@final
class Disk:
    """What is on a disk with sectors of so many bytes, and what waits to be."""

    def __init__(self, sector: int) -> None:
        self._sector = sector
        self._files: dict[int, _File] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._live: dict[int, dict[str, int]] = {}
        self._waiting: list[Names] = []

    def apply(self, call: Call) -> None:
        """Go on by one call."""
        match call:
            case Write(file, offset, data, synced):
                if synced:
                    self._file(file).sync(offset, offset + len(data))
                else:
                    self._file(file).write(offset, data)
            case Resize(file, size):
                self._file(file).resize(size)
            case Sync(target, True):
                self._file(target).fail_sync()
            case Sync(target, _, data):
                self._file(target).sync()
                if not data:
                    self._file(target).sync_status()
                done = [each for each in self._waiting if any(folder == target for folder, _, _ in each.changes)]
                self._keep(done)
                for identity in self._live.get(target, {}).values():
                    if self._file(identity).is_special:
                        self._file(identity).sync_status()
            case SyncAll():
                for each in self._files.values():
                    each.sync()
                    each.sync_status()
                self._keep(self._waiting)
            case Status(target):
                self._file(target).statuses.append(call)
            case Special(status, data):
                self._file(status.target).make_special(status, data)
            case Names():
                self._waiting.append(call)
                _change(self._live, call)

    def _keep(self, done: list[Names]) -> None:
        self._waiting = [each for each in self._waiting if each not in done]
        for each in done:
            _change(self._names, each)

    def states(self, chance: random.Random, most: int) -> Iterator[State]:
        """All states that the disk can be in now if they are no more than `most`, and else so many drawn by chance: the
        ones that lose or keep everything, and others that lose much or little of each file."""
        sizes = [2] * len(self._waiting)
        places: list[_Place] = []
        for identity, file in self._files.items():
            places.append((identity, None))
            sizes.append(len(file.sizes))
            for number, versions in file.pending.items():
                places.append((identity, number))
                sizes.append(len(versions) + 1)
            if len(file.statuses) > 1:
                places.append((identity, _STATUS))
                sizes.append(len(file.statuses))
        if math.prod(sizes) <= most:
            vectors: Iterator[Sequence[int]] = itertools.product(*map(range, sizes))
        else:
            vectors = itertools.chain(
                ([0] * len(sizes), [size - 1 for size in sizes]),
                (self._drawn(chance, places, sizes) for _ in range(most - 2)),
            )
        for vector in vectors:
            yield self._state(vector, places)

    def _drawn(self, chance: random.Random, places: Sequence[_Place], sizes: Sequence[int]) -> list[int]:
        names = len(self._waiting)
        kept = chance.choice((0.0, 0.5, 1.0, 1.0))
        drawn = [int(chance.random() < kept) for _ in range(names)]
        shares = {identity: chance.choice((0.0, 0.1, 0.5, 0.9, 1.0)) for identity in self._files}
        for (identity, _), size in zip(places, sizes[names:], strict=True):
            share = shares[identity]
            full = chance.random() < share
            drawn.append(size - 1 if full else 0 if chance.random() < 0.5 else chance.randrange(size) if share else 0)
        return drawn

    def _state(self, vector: Sequence[int], places: Sequence[_Place]) -> State:
        names = {folder: dict(entries) for folder, entries in self._names.items()}
        for kept, change in zip(vector, self._waiting, strict=False):
            if kept:
                _change(names, change)
        lengths: dict[int, int] = {}
        versions: dict[int, dict[int, int]] = {}
        statuses: dict[int, int] = {}
        for (identity, number), chosen in zip(places, vector[len(self._waiting) :], strict=True):
            if number is None:
                lengths[identity] = self._files[identity].sizes[chosen]
            elif number == _STATUS:
                statuses[identity] = chosen
            else:
                versions.setdefault(identity, {})[number] = chosen
        found: State = {}
        self._walk(names, ROOT, "", lengths, versions, statuses, found)
        return found

    def _walk(
        self,
        names: Mapping[int, Mapping[str, int]],
        folder: int,
        path: str,
        lengths: Mapping[int, int],
        versions: Mapping[int, Mapping[int, int]],
        statuses: Mapping[int, int],
        found: State,
    ) -> None:
        for name, identity in sorted(names.get(folder, {}).items()):
            place = f"{path}{name}"
            file = self._file(identity)
            status = file.statuses[statuses.get(identity, 0)]
            if identity % 2:
                content = file.content(lengths.get(identity, 0), versions.get(identity, {}))
                found[place] = Node(identity, content, status)
            else:
                found[place] = Node(identity, None, status)
                self._walk(names, identity, f"{place}/", lengths, versions, statuses, found)

    def _file(self, identity: int) -> _File:
        return self._files.setdefault(identity, _File(self._sector))


def _change(names: dict[int, dict[str, int]], change: Names) -> None:
    for folder, name, identity in change.changes:
        if identity is None:
            names.get(folder, {}).pop(name, None)
        else:
            names.setdefault(folder, {})[name] = identity
