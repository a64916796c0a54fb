"""Swap things in a workspace, as quickly as can be, until told to stop: `checkpoint_race ATTACK TREE OUTSIDE SEED`.

The number of swaps is printed at the end, which comes when standard input does. Each is one system call or a few, so
several of these processes do some hundred thousand of them a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import sys
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

PLACES = 6
BETWEEN_LOOKS = 500
_EXCHANGE = 2
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_libc = ctypes.CDLL(None, use_errno=True)


def lay_out(workspace: Path) -> None:
    """Make the workspace that is then attacked: folders of a file, and of a folder with a file."""
    for place in range(PLACES):
        inner = workspace / f"{place}" / "inner"
        inner.mkdir(parents=True)
        for file in (inner.parent / "file", inner / "file"):
            file.write_text(f"{place}")


def lay_out_outside(outside: Path) -> None:
    """Make what is outside: the same names, so that whoever is led there finds what he looks for."""
    (outside / "inner").mkdir(parents=True)
    for file in (outside / "file", outside / "inner" / "file"):
        file.write_text(f"the secret {file}")
        file.chmod(0o640)


def exchange(folder: int, one: bytes, other: bytes) -> None:
    """Let two names in an open folder have what the other had (renameat2(2)); nothing, if one is gone just now."""
    _libc.renameat2(folder, one, folder, other, _EXCHANGE)


def links(workspace: Path, outside: Path, chance: random.Random) -> Callable[[], None]:
    """Files and folders for links to what is outside, and back."""
    root = os.open(workspace, _FOLDER)
    mine = f"-{chance.random()}".encode()
    swaps: list[tuple[int, bytes]] = []
    opened: list[int] = []
    left = 0

    def plant(folder: int, name: bytes, target: Path) -> None:
        with contextlib.suppress(FileExistsError):
            os.symlink(target, name + mine, dir_fd=folder)
        swaps.append((folder, name))

    def begin() -> None:
        """A restore may have taken the links away, and the folders."""
        while opened:
            os.close(opened.pop())
        swaps.clear()
        for place in (b"%d" % place for place in range(PLACES)):
            # Never by a path, which would lead us outside by our own links.
            for name in (place, place + mine):
                with contextlib.suppress(OSError):
                    opened.append(os.open(name, _FOLDER, dir_fd=root))
                    plant(opened[-1], b"file", outside / "file")
                    plant(opened[-1], b"inner", outside / "inner")
            plant(root, place, outside)

    def swap() -> None:
        nonlocal left
        if not left:
            begin()
            left = BETWEEN_LOOKS
        left -= 1
        folder, name = swaps[int(chance.random() * len(swaps))]
        exchange(folder, name, name + mine)

    return swap


def hard_links(workspace: Path, outside: Path, chance: random.Random) -> Callable[[], None]:
    """Files for other names of a file outside, each only for a moment."""
    names = [workspace / f"{place}" / "file" for place in range(PLACES)]
    mine = workspace / f"mine-{chance.random()}"

    def swap() -> None:
        name = names[int(chance.random() * PLACES)]
        with contextlib.suppress(OSError):
            os.link(outside / "file", mine)
            os.rename(mine, name)
        with contextlib.suppress(OSError):
            os.unlink(name)

    return swap


def storm(workspace: Path, outside: Path, chance: random.Random) -> Callable[[], None]:
    """Folders into each other, and out again."""
    names = [f"{place}" for place in range(PLACES)]

    def swap() -> None:
        one, other = chance.sample(names, 2)
        with contextlib.suppress(OSError):
            os.rename(workspace / one, workspace / other / "inner" / one)
        with contextlib.suppress(OSError):
            os.rename(workspace / other / "inner" / one, workspace / one)

    return swap


def folders(workspace: Path, outside: Path, chance: random.Random) -> Callable[[], None]:
    """Folders for others that have the same names in them, at both depths."""
    root = os.open(workspace, _FOLDER)
    names = [b"%d" % place for place in range(PLACES)]

    def swap() -> None:
        one, other = chance.sample(names, 2)
        if chance.random() < 0.5:
            exchange(root, one, other)
        else:
            exchange(root, one + b"/inner", other)

    return swap


def sealed(chance: random.Random) -> bytes:
    """Some content that tells whether it is whole."""
    content = chance.randbytes(chance.choice((10, 5000, 60_000)))
    return content + blake3(content).digest()


def is_sealed(content: bytes) -> bool:
    """Whether it is one that `sealed` made."""
    return blake3(content[:-32]).digest() == content[-32:]


def replacing(workspace: Path, outside: Path, chance: random.Random) -> Callable[[], None]:
    """Write files anew by rename, as editors do, for ever."""
    mine = outside / f"mine-{chance.random()}"

    def swap() -> None:
        mine.write_bytes(sealed(chance))
        os.rename(mine, workspace / f"written-{int(chance.random() * PLACES)}")

    return swap


def numbered(number: int) -> bytes:
    """What is written over a file, from its beginning to its end."""
    return b"%016d" % number * 40_000


def is_written(content: bytes) -> bool:
    """Whether a file had this content at some time: up to some place it was written over once more than behind it."""
    last, count = content[-16:], len(content) // 16
    newer = b"%016d" % (int(last) + 1)
    times = content.count(newer)
    return content == newer * times + last * (count - times)


def in_place(workspace: Path, outside: Path, chance: random.Random) -> Callable[[], None]:
    """Write over files, as databases do, for ever."""
    path = workspace / f"over-{chance.random()}"
    path.write_bytes(numbered(0))
    file = os.open(path, os.O_WRONLY)
    number = 0

    def swap() -> None:
        nonlocal number
        number += 1
        os.pwrite(file, numbered(number), 0)

    return swap


def permissions(workspace: Path, outside: Path, chance: random.Random) -> Callable[[], None]:
    """Take and give modes."""
    paths = [workspace / f"{place}" / name for place in range(PLACES) for name in ("", "file", "inner")]

    def swap() -> None:
        with contextlib.suppress(OSError):  # a restore may have taken it away
            os.chmod(paths[int(chance.random() * len(paths))], chance.choice((0o000, 0o755, 0o711, 0o600)))

    return swap


ATTACKS = {attack.__name__: attack for attack in (links, hard_links, storm, folders, replacing, in_place, permissions)}


def main() -> None:
    attack, workspace, outside, seed = sys.argv[1:]
    swap = ATTACKS[attack](Path(workspace), Path(outside), random.Random(seed))
    swaps = 0
    counter = os.open(Path(outside).with_name(f"swaps-{seed}"), os.O_WRONLY | os.O_CREAT, 0o600)
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        for _ in range(BETWEEN_LOOKS):
            swap()
        swaps += BETWEEN_LOOKS
        os.pwrite(counter, b"%d" % swaps, 0)


if __name__ == "__main__":
    main()
