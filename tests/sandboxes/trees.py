"""Hostile trees, and random ones with random changes."""

from __future__ import annotations

import os
import socket
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from hypothesis import strategies as st

from .support import listing

TIMES = {
    "in 1901": -2_147_483_000 * 10**9,
    "before the epoch": -1_500_000_001,
    "a fraction": 1_700_000_000_123_456_789,
    "in 2400": 13_569_465_600 * 10**9 + 7,
}
"""Times of modification that a file may have; not every file system keeps all of them."""

MODES = (0o000, 0o400, 0o644, 0o755, 0o777, 0o1777)

NAMES = (
    b"line\nbreak",
    b"\xff\xfe invalid",
    b"\x1b[31mred\x1b[0m",
    b"-rf",
    b"'quotes\"",
    b" ",
    b"$(id)",
    b"..x",
    "ünï".encode(),
    b"n" * 255,
    b".sandkeep-0123456789abcdef",
    b".sandkeep-0123456789abcdef0123456789abcdef",
)


def hostile_tree(folder: Path) -> Path:
    """Make `folder` a tree of everything that this version promises to record and to set back exactly."""
    folder.mkdir()
    root = os.fsencode(folder)
    for odd in NAMES:
        with open(os.path.join(root, odd), "wb") as file:
            file.write(odd)
    for name, target in {
        "dangling": "nowhere",
        "looping": "looping",
        "absolute": "/etc/passwd",
        "upward": "../../../../etc",
        "to folder": "nested",
        "to file": "-rf",
        "long": "x" * 4000,
    }.items():
        (folder / name).symlink_to(target)
    os.symlink(b"\xff\n", os.path.join(root, b"odd target"))
    (folder / "nested" / "empty" / "emptier").mkdir(parents=True)
    (folder / "nested" / "file").write_bytes(b"")
    (folder / "binary").write_bytes(bytes(range(256)) * 300)
    (folder / "hard one").write_text("the same")
    (folder / "hard two").hardlink_to(folder / "hard one")
    os.mkfifo(folder / "fifo", 0o622)
    with socket.socket(socket.AF_UNIX) as made:
        descriptor = os.open(folder, os.O_RDONLY)
        made.bind(f"/proc/self/fd/{descriptor}/socket")
        os.close(descriptor)
    with open(folder / "sparse", "wb") as file:
        file.seek(1 << 24)
        file.write(b"end")
    for name, time in TIMES.items():
        (folder / name).touch()
        os.utime(folder / name, ns=(time, time))
    os.utime(folder / "dangling", ns=(10**18, 10**18), follow_symlinks=False)
    (folder / "nested" / "repository" / ".git").mkdir(parents=True)
    (folder / "nested" / "repository" / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    # Who is not root cannot read what has no permissions, and a checkpoint is then refused.
    for mode in MODES if os.getuid() == 0 else MODES[1:]:
        (folder / f"mode {mode:o}").touch()
        (folder / f"mode {mode:o}").chmod(mode)
    for mode in (0o1777, 0o555, 0o700):
        (folder / f"folder {mode:o}").mkdir()
        (folder / f"folder {mode:o}" / "inside").touch()
        (folder / f"folder {mode:o}").chmod(mode)
    (folder / "set-user-id").touch()
    (folder / "set-user-id").chmod(0o6755)
    return folder


def more_hostile_tree(folder: Path) -> Path:
    """A hostile tree, and what only some systems can make: attributes, access control lists, devices, a large hole; and
    what other tools alter: line ends that a repository would rewrite, hard links across folders."""
    hostile_tree(folder)
    (folder / ".gitattributes").write_text("* text eol=lf\n")
    (folder / "line ends").write_bytes(b"one\r\ntwo\r\n")
    (folder / "folder 700" / "hard three").hardlink_to(folder / "hard one")
    (folder / "nested" / "empty" / "hard four").hardlink_to(folder / "binary")
    with open(folder / "large hole", "wb") as file:
        file.write(b"begin")
        file.seek(1 << 29)
        file.write(b"middle")
        file.truncate(1 << 30)
    for name in ("hard one", "nested", "mode 400"):
        os.setxattr(folder / name, "user.odd", b"\0\xff" * 50)
    # Version 2; owner, user 1234, group, mask and others, each as tag, permissions and id.
    entries = ((1, 7, -1), (2, 5, 1234), (4, 5, -1), (16, 5, -1), (32, 0, -1))
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(folder / "mode 755", "system.posix_acl_access", packed)
    os.setxattr(folder / "folder 700", "system.posix_acl_default", packed)
    if os.getuid() == 0:
        os.mknod(folder / "character device", stat.S_IFCHR | 0o640, os.makedev(1, 3))
        os.mknod(folder / "block device", stat.S_IFBLK | 0o600, os.makedev(7, 200))
        os.chown(folder / "nested" / "file", 4321, 8765)
        os.chown(folder / "dangling", 4321, 8765, follow_symlinks=False)
    # As the last change: what was made in it has given it another.
    os.utime(folder / "nested", ns=(TIMES["before the epoch"],) * 2)
    return folder


def deep(folder: Path, depth: int) -> None:
    """Make so many folders within each other."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        above, here = here, os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(above)
    os.close(here)


# ---- random trees


@dataclass
class File:
    """A regular file."""

    content: bytes
    mode: int


@dataclass
class Link:
    """A symbolic link."""

    target: bytes


@dataclass
class Fifo:
    """A named pipe."""


@dataclass
class Folder:
    """A folder with what is in it."""

    mode: int
    entries: dict[bytes, Node] = field(default_factory=dict)


Node: TypeAlias = File | Link | Fifo | Folder

_names = st.binary(min_size=1, max_size=4).filter(lambda name: not set(name) & {0, 0x2F} and name.strip(b"."))
_files = st.builds(File, st.binary(max_size=40), st.sampled_from((0o600, 0o644, 0o755)))
_links = st.builds(Link, st.sampled_from((b"nowhere", b"a", b"..", b"/etc", b"\xff")))
_leaves = st.one_of(_files, _files, _links, st.builds(Fifo))
_modes = st.sampled_from((0o700, 0o755, 0o1777))


def _folders(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Folder]:
    # Few names, so that the trees of one example share some.
    names = st.one_of(st.sampled_from((b"a", b"b", b"c")), _names)
    return st.builds(Folder, _modes, st.dictionaries(names, inner, max_size=4))


nodes: st.SearchStrategy[Node] = st.recursive(_leaves, _folders, max_leaves=10)
trees: st.SearchStrategy[Folder] = _folders(nodes)


def make(path: bytes, node: Node) -> None:
    """Make `node` at `path`, where nothing is."""
    match node:
        case File(content, mode):
            with open(path, "wb") as file:
                file.write(content)
            os.chmod(path, mode)
        case Link(target):
            os.symlink(target, path)
        case Fifo():
            os.mkfifo(path)
        case Folder(mode, entries):
            os.mkdir(path)
            for name, inner in entries.items():
                make(os.path.join(path, name), inner)
            os.chmod(path, mode)


@dataclass
class Change:
    """A change of the entry with this number, counted through the tree as it is then."""

    number: int
    kind: str
    node: Node
    time_ns: int


changes: st.SearchStrategy[list[Change]] = st.lists(
    st.builds(
        Change,
        st.integers(0, 30),
        st.sampled_from(("remove", "replace", "add", "mode", "time", "append", "rename", "link", "tell", "hole")),
        nodes,
        st.integers(0, 2**60),
    ),
    max_size=8,
)


def change(folder: Path, what: Change) -> None:
    """Make the change, where it can be made."""
    root = os.fsencode(folder)
    found = [os.path.join(parent, name) for parent, folders, files in os.walk(root) for name in (*folders, *files)]
    if not found:
        make(os.path.join(root, b"new"), what.node)
        return
    path = sorted(found)[what.number % len(found)]
    status = os.lstat(path)
    match what.kind:
        case "remove":
            remove(path)
        case "replace":
            remove(path)
            make(path, what.node)
        case "add":
            parent = path if stat.S_ISDIR(status.st_mode) else os.path.dirname(path)
            if not os.path.lexists(os.path.join(parent, b"new")):
                make(os.path.join(parent, b"new"), what.node)
        case "mode" if not stat.S_ISLNK(status.st_mode):
            os.chmod(path, stat.S_IMODE(status.st_mode) ^ 0o011)
        case "time":
            os.utime(path, ns=(what.time_ns, what.time_ns), follow_symlinks=False)
        case "append" if stat.S_ISREG(status.st_mode):
            with open(path, "ab") as file:
                file.write(b"more")
        case "link" if stat.S_ISREG(status.st_mode) and not os.path.lexists(path + b"="):
            os.link(path, path + b"=")
        case "tell" if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            os.setxattr(path, b"user.told", what.time_ns.to_bytes(8, "little"))
        case "hole" if stat.S_ISREG(status.st_mode):
            os.truncate(path, status.st_size + (1 << 20))
        case "rename":
            os.rename(path, os.path.join(root, b"renamed")) if not os.path.lexists(root + b"/renamed") else None


def remove(path: bytes) -> None:
    """Remove whatever is at `path`."""
    if stat.S_ISDIR(os.lstat(path).st_mode):
        os.chmod(path, 0o700)
        for name in os.listdir(path):
            remove(os.path.join(path, name))
        os.rmdir(path)
    else:
        os.unlink(path)


def whole(root: Path) -> dict[bytes, tuple[object, ...]]:
    """A listing with the root itself, with attributes, and with which names are one file."""
    found, first = listing(root), dict[int, bytes]()
    for path in [b"", *sorted(found)]:
        full = os.path.join(os.fsencode(root), path)
        status = os.lstat(full)
        one = b"" if stat.S_ISDIR(status.st_mode) else first.setdefault(status.st_ino, path)
        names = os.listxattr(full, follow_symlinks=False)
        kept = {each: os.getxattr(full, each, follow_symlinks=False) for each in names}
        found[path] = (*found.get(path, (status.st_mode, status.st_mtime_ns)), one, kept)
    return found
