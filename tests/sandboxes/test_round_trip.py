"""What was recorded comes back, as tools tell that are not ours: find, diff, and the system's calls for attributes."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep.events import BlobDamaged, BlobStore
from sandkeep.events.errors import BlobsUnavailable
from sandkeep.sandboxes import manifest, restore, workspace
from sandkeep.sandboxes.errors import RestoreIncomplete, RestoreRefused

from ..crash.support import LONG
from ..packed import damage, objects
from . import trees
from .support import listing, opened, put_back, take

NAMES = 1_000_000 if LONG else 100_000
DEPTH = 4000
_FORMAT = r"%P\0%y %m %U %G %s %T@ %n\0%l\0%D:%i\0"


@pytest.fixture
def pit(tmp_path: Path) -> Iterator[Path]:
    """A folder for trees that others can hardly remove."""
    (tmp_path / "pit").mkdir()
    yield tmp_path / "pit"
    workspace.remove(tmp_path / "pit")


def found(folder: Path) -> dict[bytes, object]:
    """What find and the system say of all that is in a folder: which names are one file, and everything else."""
    fields = subprocess.run(["find", folder, "-printf", _FORMAT], capture_output=True, check=True).stdout.split(b"\0")
    rows = list(zip(*(iter(fields[:-1]),) * 4, strict=True))
    names: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for path, _, _, file in rows:
        names[file].append(path)
    root = os.fsencode(folder)
    seen: dict[bytes, object] = {}
    for path, about, target, file in rows:
        kind, mode, uid, gid, size, time, links = about.split()
        full = os.path.join(root, path) if path else root
        attributes = [
            (name, os.getxattr(full, name, follow_symlinks=False))
            for name in sorted(os.listxattr(full, follow_symlinks=False))
        ]
        # A folder's size is the file system's own affair.
        known = (kind, mode, uid, gid, time) if kind == b"d" else (kind, mode, uid, gid, time, size, links)
        device = os.lstat(full).st_rdev
        seen[path] = (known, target, sorted(names[file]) if kind != b"d" else [], attributes, device)
    return seen


def holes(path: Path) -> list[int]:
    """Where data begins in a file, and where it ends."""
    places = [0]
    with open(path, "rb") as file, contextlib.suppress(OSError):  # there is no more data
        while True:
            places.append(os.lseek(file.fileno(), places[-1], os.SEEK_DATA))
            places.append(os.lseek(file.fileno(), places[-1], os.SEEK_HOLE))
    return places


def different(one: Path, other: Path) -> list[str]:
    """What diff says of contents; of what is no file it can only tell that it is not."""
    command = ["diff", "-r", "--no-dereference", "--exclude=large hole", str(one), str(other)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=os.environ | {"LC_ALL": "C"})
    lines = done.stdout.replace("line\nbreak", "line break").splitlines()
    return done.stderr.splitlines() + [
        line for line in lines if not line.endswith((" fifo", " socket", "special file"))
    ]


def restored(target: str, to: Path, blobs: BlobStore) -> Path:
    """The tree `target` in a new folder, with all that gives privileges."""
    to.mkdir(parents=True)
    assert put_back(to, target, blobs, privileges=True) == ()
    return to


def test_a_hostile_tree_comes_back_exactly(tmp_path: Path, blobs: BlobStore) -> None:
    for name in ("made", "anew"):
        (tmp_path / name).mkdir()
    tree = trees.more_hostile_tree(tmp_path / "made" / "tree")
    expected = found(tree)
    taken = take(tree, blobs)
    assert taken.torn == ()
    assert found(tree) == expected
    anew = restored(taken.digest, tmp_path / "anew" / "tree", blobs)
    assert found(anew) == expected
    assert different(tree, anew) == []
    assert holes(anew / "large hole") == holes(tree / "large hole")
    assert take(anew, blobs).digest == taken.digest


def test_a_hostile_tree_comes_back_in_place(tmp_path: Path, blobs: BlobStore) -> None:
    tree = trees.more_hostile_tree(tmp_path / "tree")
    expected, target = found(tree), take(tree, blobs).digest
    for path in (path for path in sorted(tree.iterdir())[::2] if path.name not in ("nested", "binary", "large hole")):
        trees.remove(os.fsencode(path))
    os.removexattr(tree / "nested", "user.odd")
    os.setxattr(tree / "binary", "user.more", b"1")
    os.truncate(tree / "large hole", 1 << 31)
    (tree / "hard five").hardlink_to(tree / "nested" / "empty" / "hard four")
    tree.chmod(0o711)
    put_back(tree, target, blobs, privileges=True)
    assert found(tree) == expected
    assert take(tree, blobs).digest == target


def test_a_tree_as_deep_as_promised_comes_back(pit: Path, blobs: BlobStore) -> None:
    (pit / "tree").mkdir()
    trees.deep(pit / "tree", DEPTH)
    taken = take(pit / "tree", blobs)
    anew = restored(taken.digest, pit / "anew", blobs)
    assert take(anew, blobs).digest == taken.digest
    asked = subprocess.run(["find", anew, "-printf", r"%d\n"], capture_output=True, text=True, check=True)
    assert max(map(int, asked.stdout.split())) == DEPTH


def test_a_folder_of_very_many_names_comes_back(pit: Path, blobs: BlobStore) -> None:
    tree = pit / "tree"
    tree.mkdir()
    with opened(tree) as folder:
        for number in range(NAMES):
            os.mknod(f"{number}", dir_fd=folder)
    target = take(tree, blobs).digest
    for number in (0, NAMES // 2, NAMES - 1):
        (tree / f"{number}").unlink()
    (tree / "another").touch()
    put_back(tree, target, blobs)
    assert len(os.listdir(tree)) == NAMES
    assert not (tree / "another").exists()
    assert (tree / f"{NAMES - 1}").exists()


# ---- a disk that refuses

_CALLS = ("write", "pwrite", "mkdir", "symlink", "link", "rename", "fsync", "open", "ftruncate")


def fill_up(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the disk be full after so many calls that need room."""
    calls = [0]

    def refusing(name: str) -> None:
        really = getattr(os, name)

        def call(*arguments: object, **options: object) -> object:
            needs = name != "open" or bool(int(str(arguments[1])) & os.O_CREAT)
            calls[0] += needs
            if needs and calls[0] > number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return really(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    for name in _CALLS:
        refusing(name)


def test_a_disk_that_is_full_at_any_step_of_a_restore_leaves_what_another_completes(
    tmp_path: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    (tree / "sub" / "inner").mkdir(parents=True)
    for name in ("one", "sub/two", "sub/inner/three"):
        (tree / name).write_text(name)
    (tree / "sub" / "link").symlink_to("two")
    (tree / "hard").hardlink_to(tree / "one")
    target = take(tree, blobs).digest
    refused = incomplete = number = 0
    while True:
        trees.remove(os.fsencode(tree / "sub" / "inner"))
        for name in ("one", "sub/link"):
            (tree / name).unlink(missing_ok=True)
        (tree / "sub" / "two").write_text("changed")
        before, present = listing(tree), take(tree, blobs).digest
        with monkeypatch.context() as patch, opened(tree) as root:
            fill_up(patch, number)
            try:
                restore.apply(root, present, target, blobs)
            except RestoreRefused:
                refused += 1
                patch.undo()
                assert listing(tree) == before
            except (OSError, RestoreIncomplete):
                incomplete += 1
            else:
                break
        put_back(tree, target, blobs)
        assert take(tree, blobs).digest == target
        number += 1
    assert refused > 5
    assert incomplete > 5


def test_a_disk_that_is_full_at_any_step_of_a_snapshot_leaves_those_before(
    tmp_path: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("first")
    before, expected = take(tree, blobs).digest, listing(tree)
    refused = number = 0
    while True:
        for name in ("file", "more"):
            (tree / "sub" / name).write_bytes(os.urandom(3000))
        with monkeypatch.context() as patch:
            fill_up(patch, number)
            try:
                taken = take(tree, blobs)
            except (OSError, BlobsUnavailable):
                refused += 1
            else:
                break
        number += 1
    assert refused > 2
    changed = listing(tree)
    put_back(tree, before, blobs)
    assert listing(tree) == expected
    put_back(tree, taken.digest, blobs)
    assert listing(tree) == changed
    assert list(blobs.verify(1.0)) == []


# ---- bit rot


def test_a_flipped_bit_in_any_object_is_found_and_never_set_back(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "small").write_text("small")
    (tree / "large").write_bytes(os.urandom(700_000))
    (tree / "huge").write_bytes(os.urandom(1_300_000))
    (tree / "sub" / "other").write_text("other")
    store = tmp_path / "blobs"
    target = take(tree, BlobStore(store)).digest
    expected = listing(tree)
    spoiled = 0
    for digest in objects(store):
        blobs = BlobStore(store)
        both = damage(store, digest)
        assert digest in set(blobs.verify(1.0)) & both
        empty = tmp_path / "empty"
        empty.mkdir()
        with opened(empty) as root, pytest.raises(BlobDamaged):
            restore.apply(root, manifest.store({}, blobs), target, blobs)
        assert list(empty.iterdir()) == []
        empty.rmdir()
        damage(store, digest)  # the same bit again
        spoiled += 1
    assert spoiled > 6
    put_back(tree, target, BlobStore(store))
    assert listing(tree) == expected
