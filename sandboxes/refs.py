"""Branches and submodule pointers of a workspace's repository, read as data.

The repository is hostile: git itself is never run in it, since its configuration and hooks could make git run anything.
Only the top folder's own `.git` is looked at, only if it is a folder, and no link is followed. What cannot be read is
not there.

A branch is listed as `.git/refs/heads/<name>`, a submodule under its path with a slash behind it, so that neither can
be taken for a file; the content of both is the commit's id and a newline.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator

from sandkeep.sandboxes.workspace import descend

HEADS = b".git/refs/heads/"
"""What the names of branches begin with."""

MAX_BYTES = 64 << 20
"""The size of the largest file that is read."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_COMMIT = re.compile(rb"([0-9a-f]{40}|[0-9a-f]{64})\n?")
_PACKED = re.compile(rb"^([0-9a-f]{40}|[0-9a-f]{64}) refs/heads/(\S+)$", re.MULTILINE)
_NAMED = re.compile(rb"ref: (refs/heads/\S+)\n?")
_PARENT = re.compile(rb"^parent ([0-9a-f]{40}|[0-9a-f]{64})$", re.MULTILINE)
_GITLINK = 0o160000
_NOWHERE = {b"", b".", b".."}
_MAX_COMMIT_BYTES = 1 << 20
_MAX_COMMITS = 1000
_MAX_DEPTH = 20


def pointers(root: int) -> dict[bytes, bytes]:
    """The branches and submodule pointers of the repository in the folder open as `root`, and the commits they name."""
    try:
        git = os.open(b".git", _FOLDER, dir_fd=root)
    except OSError:
        return {}
    try:
        return branches(_read(git, b"packed-refs"), _loose(git, (b"refs", b"heads"), HEADS)) | submodules(
            _read(git, b"index")
        )
    finally:
        os.close(git)


def head(root: int) -> bytes | None:
    """The commit that is checked out in the folder open as `root`; None if there is none."""
    found = _read(root, b".git", b"HEAD")
    if (commit := _COMMIT.fullmatch(found)) is not None:
        return commit[1]
    named = _NAMED.fullmatch(found)
    return None if named is None else pointers(root).get(b".git/" + named[1], b"").strip() or None


def branches(packed: bytes, loose: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Branches and the commits they name, of git's packed list and the contents of branches' own files."""
    # The list is the sandbox's: a name in it may try to lead out of its folder.
    found = {HEADS + name: commit for commit, name in _PACKED.findall(packed) if not _NOWHERE & {*name.split(b"/")}}
    return found | {name: commit[1] for name, content in loose if (commit := _COMMIT.fullmatch(content))}


def submodules(index: bytes) -> dict[bytes, bytes]:
    """Submodules, each with a slash behind its path, and the commits that an index has for them."""
    found = (each for each in entries(index) or () if each[1] == _GITLINK)
    return {name + b"/": commit.hex().encode() for name, _, commit, _ in found}


def packed(root: int, branch: bytes) -> bool:
    """Whether git's packed list names this branch (with `HEADS` before it), so that its own file is not all of it."""
    try:
        git = os.open(b".git", _FOLDER, dir_fd=root)
    except OSError:
        return False
    try:
        return any(HEADS + name == branch for _, name in _PACKED.findall(_read(git, b"packed-refs")))
    finally:
        os.close(git)


def follows(root: int, later: bytes, earlier: bytes) -> bool:
    """Whether the commit `later` has `earlier` among its forebears, as far as loose objects can tell."""
    waiting, seen = [later], {later}
    while waiting and len(seen) <= _MAX_COMMITS:
        commit = waiting.pop()
        if commit == earlier:
            return True
        for parent in _PARENT.findall(_object(root, commit).partition(b"\n\n")[0]):
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return False


def _object(root: int, digest: bytes) -> bytes:
    data = _read(root, b".git", b"objects", digest[:2], digest[2:])
    try:
        return zlib.decompressobj().decompress(data, _MAX_COMMIT_BYTES)
    except zlib.error:
        return b""


def _loose(git: int, folders: tuple[bytes, ...], prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    try:
        folder = descend(git, folders)
    except OSError:
        return
    try:
        names = sorted(os.fsencode(name) for name in os.listdir(folder))
        for name in names:
            try:
                is_folder = stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
            except FileNotFoundError:
                continue
            if is_folder and len(folders) < _MAX_DEPTH:
                yield from _loose(folder, (name,), prefix + name + b"/")
            else:
                yield prefix + name, _read(folder, name)
    finally:
        os.close(folder)


def entries(index: bytes) -> list[tuple[bytes, int, bytes, int]] | None:
    """Path, mode, object and stage of each entry in an index of version 2 or 3, as git's `index-format` has it; None
    for any other."""
    if index[:4] != b"DIRC" or int.from_bytes(index[4:8], "big") not in (2, 3) or len(index) < 12:
        return None
    found = []
    place = 12
    for _ in range(int.from_bytes(index[8:12], "big")):
        flags = int.from_bytes(index[place + 60 : place + 62], "big")
        name_at = place + (64 if flags & 0x4000 else 62)
        end = index.find(b"\0", name_at)
        if end < 0:
            return None
        mode = int.from_bytes(index[place + 24 : place + 28], "big")
        found.append((index[name_at:end], mode, index[place + 40 : place + 60], flags >> 12 & 3))
        place += (end - place + 8) // 8 * 8
    return found


def _read(folder: int, *path: bytes) -> bytes:
    """A regular file below an open folder; empty if it is none, or too large."""
    try:
        parent = descend(folder, path[:-1])
        try:
            descriptor = os.open(path[-1], _FILE, dir_fd=parent)
        finally:
            os.close(parent)
    except OSError:
        return b""
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        return file.read() if stat.S_ISREG(found.st_mode) and found.st_size <= MAX_BYTES else b""
