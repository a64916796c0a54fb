"""The folder of a cache on the host: what it takes, and what goes first when that is too much.

Tasks write to it, also while it is looked at. So every step goes through the descriptor of the folder above, no link is
followed, and nothing outside can be reached: what is inside of a mount cannot be moved out of it. What vanishes or
changes meanwhile is left as it is. Memory is bounded however many files there are.

What was not used for longest goes first: not read (as far as the host's file system keeps the time of access, most do
once a day) nor written. Tasks can set these times, and so spare their own files; but what they may write to they can
remove anyway. What lies deeper than any tool makes it is brought up to the top, where the next look finds it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

MOST_ENTRIES = 2_000_000
"""With more files and folders than these a cache is emptied, whatever they take."""

MOST_DEPTH = 48
_PARTS = 8
_PASSES = 4
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Found = tuple[int, str, os.stat_result]


class Content(msgspec.Struct, frozen=True):
    """What is in a cache, or was removed from it: how many files and folders, and what they take on the disk."""

    files: int = 0
    bytes: int = 0


def content(folder: Path) -> Content:
    """What is in the cache. Raises `OSError`."""
    return _content(_ages(folder, time.time()))


def prune(folder: Path, most: int) -> tuple[Content, Content]:
    """Remove what was not used for longest until the cache takes nine tenths of `most` bytes, if it takes more than
    `most`; returns what was removed, and what is left. Raises `OSError`."""
    now = time.time()
    ages = _ages(folder, now)
    whole = _content(ages)
    if whole.files > MOST_ENTRIES:
        return empty(folder)
    if whole.bytes <= most:
        return Content(), whole
    excess = whole.bytes - most * 9 // 10
    oldest, older = sorted(ages), 0
    while older + ages[cut := oldest.pop()].bytes < excess:
        older += ages[cut].bytes
    return _remove(folder, now, cut, excess - older), _content(_ages(folder, now))


def empty(folder: Path) -> tuple[Content, Content]:
    """Remove all that is in the cache; returns that, and what is left of it, because others write to it meanwhile.
    Raises `OSError`."""
    removed, left = Content(), Content()
    for _ in range(_PASSES):  # what lay too deep is at the top the next time
        more = _remove(folder, math.inf, 0, math.inf)
        removed = Content(removed.files + more.files, removed.bytes + more.bytes)
        left = content(folder)
        if not left.files:
            break
    return removed, left


def _ages(folder: Path, now: float) -> dict[int, Content]:
    """What is in the cache by its age, on a scale that is finer for what is young."""
    ages: dict[int, Content] = {}
    seen = 0
    with _opened(folder) as root:
        for _, _, found in _walk(root, root, 0):
            age = _age(found, now)
            known = ages.get(age, Content())
            ages[age] = Content(known.files + 1, known.bytes + _size(found))
            seen += 1
            if seen > MOST_ENTRIES:
                break
    return ages


def _content(ages: dict[int, Content]) -> Content:
    return Content(sum(each.files for each in ages.values()), sum(each.bytes for each in ages.values()))


def _remove(folder: Path, now: float, cut: int, bytes_of_cut: float) -> Content:
    """Remove all that is older than the age `cut`, and of that age so many bytes, and folders with nothing in them."""
    files = removed = 0
    with _opened(folder) as root:
        # Bounded, or who makes more meanwhile would hold this up for ever.
        for inner, name, found in itertools.islice(_walk(root, root, 0), MOST_ENTRIES):
            age, size, is_folder = _age(found, now), _size(found), stat.S_ISDIR(found.st_mode)
            if age < cut or (age == cut and bytes_of_cut <= 0 and not is_folder):
                continue
            with contextlib.suppress(OSError):  # gone, or a folder with something in it
                if is_folder:
                    os.rmdir(name, dir_fd=inner)
                else:
                    os.unlink(name, dir_fd=inner)
                files, removed = files + 1, removed + size
                if age == cut:
                    bytes_of_cut -= size
    return Content(files, removed)


def _walk(root: int, folder: int, depth: int) -> Iterator[Found]:
    """All that is in the folder: the folder above, open, the name, and what is there. Folders come after what is in
    them, as they were before."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            try:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    if depth < MOST_DEPTH:
                        inner = _enter(name, folder)
                        try:
                            yield from _walk(root, inner, depth + 1)
                        finally:
                            os.close(inner)
                    else:
                        os.rename(name, secrets.token_hex(16), src_dir_fd=folder, dst_dir_fd=root)
                        continue
            except OSError:
                continue  # gone meanwhile, or something else by now
            yield folder, name, found


def _enter(name: str, folder: int) -> int:
    """Open a folder in another; one that its owner has closed is opened by the owner, where that is us."""
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except PermissionError:
        held = os.open(name, os.O_PATH | _FOLDER, dir_fd=folder)
    try:
        os.chmod(f"/proc/self/fd/{held}", stat.S_IRWXU)
    finally:
        os.close(held)
    return os.open(name, _FOLDER, dir_fd=folder)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    above = os.open(folder.parent, _FOLDER)
    try:
        root = _enter(folder.name, above)
    finally:
        os.close(above)
    try:
        yield root
    finally:
        os.close(root)


def _size(found: os.stat_result) -> int:
    """What it takes on the disk; of a file with several names, the part that falls to each."""
    names = 1 if stat.S_ISDIR(found.st_mode) else max(1, found.st_nlink)
    return found.st_blocks * 512 // names


def _age(found: os.stat_result, now: float) -> int:
    """How long it was not used, on a scale of logarithms. What says that it was used in the future is new."""
    if math.isinf(now):
        return 0
    # A folder is read whenever it is looked at, also by us.
    used = found.st_mtime if stat.S_ISDIR(found.st_mode) else max(found.st_atime, found.st_mtime)
    return int(math.log2(max(0.0, now - used) + 1) * _PARTS)
