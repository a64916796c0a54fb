"""What lies in a workspace, looked at often: only what its times say was touched is read again.

A survey lists every file, link, fifo and socket by its path, with the digest of its content; folders count through what
is in them. A file is read again unless its inode, size, mode and both times are what they were *and* it had not been
changed just before it was last read, when a further change might not show (the "racy" entries of git's index). The
status change time cannot be set from inside a sandbox.

Contents go to a cache, the *shadow*, unsynced, when they are first seen; so what is overwritten later can still be
kept. Files of more than `MAX_KEPT_BYTES` are told apart by their times only, and devices are left out.

The workspace is hostile and may change meanwhile: every step goes through the descriptor of the folder above, no link
is followed, and what will not hold still is read again the next time. What lies under `.git` is not listed; see `refs`.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import final

import msgspec

from sandkeep.events import BlobStore
from sandkeep.events.catalogue import Change, Version
from sandkeep.events.schema import NOT_DECODED
from sandkeep.sandboxes.manifest import DEVICES, MODE_BITS, Kind, kind
from sandkeep.sandboxes.workspace import descend

MAX_DEPTH = 200
"""How many folders within each other are looked into; one descriptor is open for each."""

MAX_KEPT_BYTES = 64 << 20
"""The size of the largest file whose content is kept."""

RACY_NS = 100_000_000
"""How old a change must be for the next one to show in the times, at least: many times the kernel's tick."""

_ESCAPED = re.compile(r"\\(\\|x[0-9a-f]{2})")
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """A path: how it looked (none if it must be read again), and what is there."""

    look: tuple[int, ...]
    version: Version


class Run(msgspec.Struct, frozen=True, array_like=True):
    """A command that runs: whose it is, and up to which position its agent knew what others did when it began."""

    agent: str
    base: int


class Survey(msgspec.Struct, frozen=True):
    """A workspace at one moment: the log's `position`, the task's `revision`, the commands that ran from then on, up to
    where each agent had been told what others did, and what was there."""

    position: int
    revision: int
    running: dict[str, Run]
    told: dict[str, int]
    files: dict[str, Seen]


def text(path: bytes) -> str:
    """A path as text: itself, with a backslash doubled and what is not UTF-8 as `\\xNN`. `raw` is its inverse."""
    return path.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def raw(path: str) -> bytes:
    """The path that `text` made this of."""
    parts = _ESCAPED.split(path)
    plain, escaped = parts[::2], parts[1::2]
    found = [plain[0].encode()]
    for escape, following in zip(escaped, plain[1:], strict=True):
        found += [b"\\" if escape == "\\" else bytes([int(escape[1:], 16)]), following.encode()]
    return b"".join(found)


def look(root: int, shadow: BlobStore, before: Mapping[str, Seen]) -> dict[str, Seen]:
    """Every path below the folder open as `root`, reading only what is not as it was in `before`."""
    return dict(_Walk(shadow, before).folder(root, b"", 0))


def look_at(root: int, path: str, shadow: BlobStore) -> Seen | None:
    """One path, read anew; None if nothing that a survey lists is there."""
    *parents, name = raw(path).split(b"/")
    try:
        folder = descend(root, parents)
    except OSError:
        return None
    try:
        return _Walk(shadow, {}).entry(folder, name, path)
    except OSError:
        return None
    finally:
        os.close(folder)


@final
class _Walk:
    def __init__(self, shadow: BlobStore, before: Mapping[str, Seen]) -> None:
        self._shadow = shadow
        self._before = before
        self._now = time.time_ns()

    def folder(self, folder: int, path: bytes, depth: int) -> Iterator[tuple[str, Seen]]:
        for name in sorted(os.fsencode(name) for name in os.listdir(folder)):
            if name == b".git":
                continue
            inner = path + b"/" + name if path else name
            try:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if not stat.S_ISDIR(found.st_mode):
                    seen = self._entry(folder, name, text(inner), found)
                    if seen is not None:
                        yield text(inner), seen
                elif depth < MAX_DEPTH:
                    descriptor = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=folder)
                    try:
                        yield from self.folder(descriptor, inner, depth + 1)
                    finally:
                        os.close(descriptor)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue  # gone meanwhile, or closed to us by its owner: what cannot be seen is not there

    def entry(self, folder: int, name: bytes, path: str) -> Seen | None:
        """One name in an open folder. Raises `FileNotFoundError`."""
        return self._entry(folder, name, path, os.stat(name, dir_fd=folder, follow_symlinks=False))

    def _entry(self, folder: int, name: bytes, path: str, found: os.stat_result) -> Seen | None:
        what = kind(found.st_mode)
        if what in DEVICES or what is Kind.FOLDER:
            return None
        looks = _looks(found)
        known = self._before.get(path)
        if known is not None and known.look == looks:
            return known
        version = Version(what, "", found.st_size, stat.S_IMODE(found.st_mode) & MODE_BITS)
        if what is Kind.LINK:
            target = os.readlink(name, dir_fd=folder)
            version = Version(what, self._shadow.put(target), len(target), 0)
        elif what is Kind.FILE and found.st_size <= MAX_KEPT_BYTES:
            return self._file(folder, name, found, version)
        elif what is not Kind.FILE:
            version = msgspec.structs.replace(version, size=0)
        return Seen(looks, version)

    def _file(self, folder: int, name: bytes, found: os.stat_result, version: Version) -> Seen | None:
        try:
            descriptor = os.open(name, _OPEN, dir_fd=folder)
        except PermissionError:
            return Seen(_looks(found), version)
        except OSError:
            return None  # a link took its place (ELOOP), or something that cannot be opened (ENXIO)
        try:
            begun = os.fstat(descriptor)
            if not stat.S_ISREG(begun.st_mode):
                return None
            with open(descriptor, "rb", closefd=False) as file:
                digest, size = self._shadow.put_stream(file, limit=MAX_KEPT_BYTES)
            still = _looks(os.fstat(descriptor)) == _looks(found)
        finally:
            os.close(descriptor)
        racy = not still or found.st_ctime_ns > self._now - RACY_NS
        return Seen(() if racy else _looks(found), msgspec.structs.replace(version, digest=digest, size=size))


def _looks(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def changes(before: Mapping[str, Seen], after: Mapping[str, Seen]) -> list[Change]:
    """What differs, by path. A file that is gone was renamed if a new one has its content; the first such, by path."""
    changed = sorted(
        path
        for path in before.keys() | after.keys()
        if before.get(path) is not after.get(path) and _differ(before.get(path), after.get(path))
    )
    arrived: dict[tuple[str, str], str] = {}
    for path in changed:
        if path not in before and (version := after[path].version).digest and version.size:
            arrived.setdefault((version.kind, version.digest), path)
    found = []
    for path in changed:
        old, new = before.get(path), after.get(path)
        renamed = arrived.get((old.version.kind, old.version.digest), "") if old is not None and new is None else ""
        found.append(Change(path, old.version if old else None, new.version if new else None, renamed))
    return found


def _differ(old: Seen | None, new: Seen | None) -> bool:
    if old is None or new is None or old.version != new.version:
        return True
    # Content that is not kept: only its times tell.
    return old.version.kind == Kind.FILE and not old.version.digest and old.look != new.look


def load(path: Path) -> Survey | None:
    """The survey that `save` left, if it is there and whole: it is a cache, and another begins without it."""
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Survey)
    except (FileNotFoundError, *NOT_DECODED):
        return None


def save(path: Path, survey: Survey) -> None:
    """Replace the survey in the file `path`."""
    temporary = path.with_name(f".{secrets.token_hex(8)}")
    temporary.write_bytes(msgspec.msgpack.encode(survey))
    temporary.replace(path)
