"""Looking at a large workspace with two processes: which of its folders are not as they were seen.

Half of the folders are looked at here, the others by a process of its own, since threads of one would wait for each
other. That runs this file alone, with nothing of the library: it gets the workspace as an open descriptor, and what is
to be compared as data, and answers with the numbers of the folders that differ. It changes nothing. Whatever hinders it
is a difference, which the walk then looks into.
"""

from __future__ import annotations

import marshal
import os
import subprocess
import sys

MOST_DEPTH = 100
"""How deep folders are entered; what lies deeper differs."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Look = tuple[int, bytes, int, list[bytes], list[int]]
"""A folder: how deep it lies, its name, its status change time, the names in it that are no folders, and their times. A
time of `ENTER` says that it only leads to others."""

ENTER = -1


def differing(root: int, looks: list[Look]) -> list[int]:
    """The numbers of those `looks`, each behind that of the folder above it, that are not what is below the folder open
    as `root`, which is the first of them."""
    device = os.fstat(root).st_dev
    found: list[int] = []
    way: list[int] = []
    lost = MOST_DEPTH
    look = os.stat
    try:
        for number, (depth, name, changed, names, times) in enumerate(looks):
            if depth > lost:
                found.append(number)
                continue
            lost = MOST_DEPTH
            while len(way) > depth:
                os.close(way.pop())
            try:
                folder = os.open(name, _FOLDER, dir_fd=way[-1]) if depth else os.dup(root)
                way.append(folder)
                status = os.fstat(folder)
                if status.st_dev != device:
                    raise OSError
                if changed == ENTER or (
                    status.st_ctime_ns == changed
                    and [look(each, dir_fd=folder, follow_symlinks=False).st_ctime_ns for each in names] == times
                ):
                    continue
            except FileNotFoundError:
                if len(way) == depth:
                    lost = depth
            except OSError:
                lost = depth
            found.append(number)
    finally:
        for folder in way:
            os.close(folder)
    return found


def differing_twice(root: int, looks: list[Look]) -> list[int]:
    """As `differing`, by two processes."""
    middle = _middle(looks)
    above = _above(looks, middle)
    rest = [*above, *looks[middle:]]
    with open(os.memfd_create("looks"), "w+b") as data:
        data.write(marshal.dumps(rest))
        data.flush()
        command = [sys.executable, "-I", "-S", __file__, str(root), str(data.fileno())]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=(root, data.fileno())
        ) as other:
            mine = differing(root, looks[:middle])
            answer = other.communicate()[0]
    theirs = differing(root, rest) if other.returncode else marshal.loads(answer)
    return mine + [middle + each - len(above) for each in theirs if each >= len(above)]


def _middle(looks: list[Look]) -> int:
    """The number behind which there is half of the work."""
    left = sum(len(look[3]) + 2 for look in looks) // 2
    for number, look in enumerate(looks):
        left -= len(look[3]) + 2
        if left <= 0 and number:
            return number
    return len(looks)


def _above(looks: list[Look], middle: int) -> list[Look]:
    """What leads to the look with that number."""
    found: list[Look] = []
    depth = looks[middle][0] if middle < len(looks) else 0
    for look in reversed(looks[:middle]):
        if look[0] < depth:
            depth = look[0]
            found.append((depth, look[1], ENTER, [], []))
    return found[::-1]


if __name__ == "__main__":
    with open(int(sys.argv[2]), "rb") as asked:
        asked.seek(0)
        sys.stdout.buffer.write(marshal.dumps(differing(int(sys.argv[1]), marshal.loads(asked.read()))))
