"""Setting trees back: exactly, doing no more than is needed, and never beyond the tree."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from sandkeep.events import BlobDamaged, BlobMissing, BlobStore, durable
from sandkeep.sandboxes import builder, manifest, restore, snapshot
from sandkeep.sandboxes.manifest import Entry

from ..packed import damage, lose
from . import trees
from .support import listing, opened, put_back, take
from .trees import Change, Folder, hostile_tree, whole


def make_tree(root: Path) -> Path:
    (root / "sub" / "inner").mkdir(parents=True)
    (root / "file").write_text("file")
    (root / "sub" / "other").write_text("other")
    (root / "link").symlink_to("file")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small tree."""
    return make_tree(tmp_path / "tree")


# ---- exactly


def test_a_hostile_tree_comes_back_from_nothing(tmp_path: Path, blobs: BlobStore) -> None:
    tree = hostile_tree(tmp_path / "tree")
    expected, target = listing(tree), take(tree, blobs).digest
    trees.remove(os.fsencode(tree))
    tree.mkdir()
    assert put_back(tree, target, blobs) == ("set-user-id",)
    assert listing(tree) == expected
    assert put_back(tree, target, blobs, privileges=True) == ()
    assert take(tree, blobs).digest == target


def test_a_tree_comes_back_from_a_hostile_one(folder: Path, tmp_path: Path, blobs: BlobStore) -> None:
    expected, target = listing(folder), take(folder, blobs).digest
    hostile_tree(folder / "hostile")
    for name in ("file", "link"):
        (folder / name).unlink()
        (folder / name).mkdir()
        (folder / name / "blocking").touch()
    shutil.rmtree(folder / "sub")
    os.mkfifo(folder / "sub")
    put_back(folder, target, blobs)
    assert listing(folder) == expected


@given(tree=trees.trees, changes=trees.changes)
@settings(max_examples=40)
def test_any_tree_comes_back_after_any_changes(tree: Folder, changes: list[Change]) -> None:
    with tempfile.TemporaryDirectory() as name:
        blobs, root = BlobStore(Path(name) / "blobs"), Path(name) / "tree"
        trees.make(os.fsencode(root), tree)
        expected, taken = whole(root), take(root, blobs)
        assert taken.torn == ()
        for each in changes:
            trees.change(root, each)
        changed, present = whole(root), take(root, blobs).digest
        assert (changed == expected) == (present == taken.digest)
        put_back(root, taken.digest, blobs)
        assert whole(root) == expected
        put_back(root, present, blobs)
        assert whole(root) == changed


@given(one=trees.trees, two=trees.trees)
@settings(max_examples=25)
def test_any_tree_can_be_made_into_any_other(one: Folder, two: Folder) -> None:
    with tempfile.TemporaryDirectory() as name:
        blobs, root, other = BlobStore(Path(name) / "blobs"), Path(name) / "one", Path(name) / "two"
        trees.make(os.fsencode(root), one)
        trees.make(os.fsencode(other), two)
        put_back(root, take(other, blobs).digest, blobs)
        assert whole(root) == whole(other)


@pytest.mark.parametrize("privileges", [True, False])
def test_what_was_made_is_not_read_again_and_every_change_of_it_is_seen(
    tmp_path: Path, blobs: BlobStore, privileges: bool
) -> None:
    tree = hostile_tree(tmp_path / "tree")
    for number in range(3 * builder.FEW):
        file = tree / "many" / f"{number % 20}" / "inner" / f"{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{number}")
    (tree / "many" / "linked").hardlink_to(tree / "many" / "0" / "inner" / "0")
    (tree / "many" / "1" / "set").touch()
    (tree / "many" / "1" / "set").chmod(0o4755)
    target, expected = take(tree, blobs).digest, whole(tree)
    trees.remove(os.fsencode(tree))
    tree.mkdir()
    with opened(tree) as root:
        before = snapshot.take_since(root, blobs, None)
        touched = restore.apply(root, before.snapshot.digest, target, blobs, privileges=privileges)
        after = snapshot.take_touched(root, blobs, before.seen, touched)
        # What lies in the root itself was renamed; what has several names, or was stripped, is looked at again.
        assert after.read < 60
        assert after.snapshot == take(tree, blobs)
        stripped = restore.check(after.snapshot.digest, target, blobs, privileges=privileges)
        assert stripped == (() if privileges else ("many/1/set", "set-user-id"))
        assert whole(tree) == expected
        for number, edit in enumerate((b"first", b"other")):
            edited = tree / "many" / "3" / "inner" / "3"
            with edited.open("r+b") as writing:
                writing.write(edit)
            os.utime(edited, ns=(number, number))
            after = snapshot.take_since(root, blobs, after.seen)
            assert after.snapshot == take(tree, blobs)


# ---- no more than is needed


def test_restoring_again_changes_nothing(tmp_path: Path, blobs: BlobStore) -> None:
    tree = hostile_tree(tmp_path / "tree")
    target = take(tree, blobs).digest
    before = {path: (path.lstat().st_ino, path.lstat().st_ctime_ns) for path in tree.rglob("*")}
    put_back(tree, target, blobs)
    assert {path: (path.lstat().st_ino, path.lstat().st_ctime_ns) for path in tree.rglob("*")} == before


def test_only_what_differs_is_written(folder: Path, blobs: BlobStore) -> None:
    target = take(folder, blobs).digest
    root, file, other = folder.stat().st_ino, (folder / "file").stat().st_ino, (folder / "sub" / "other").stat().st_ino
    (folder / "file").write_text("changed")
    (folder / "sub" / "other").chmod(0o600)
    (folder / "sub" / "inner" / "new").touch()
    put_back(folder, target, blobs)
    assert folder.stat().st_ino == root
    assert (folder / "file").stat().st_ino != file
    assert (folder / "sub" / "other").stat().st_ino == other
    assert stat.S_IMODE((folder / "sub" / "other").stat().st_mode) != 0o600
    assert list((folder / "sub" / "inner").iterdir()) == []


def test_who_has_an_old_file_open_goes_on_reading_it(folder: Path, blobs: BlobStore) -> None:
    target = take(folder, blobs).digest
    (folder / "file").write_text("changed")
    with open(folder / "file") as file:
        put_back(folder, target, blobs)
        assert file.read() == "changed"
    assert (folder / "file").read_text() == "file"


def test_names_of_one_file_are_told_apart_again(folder: Path, blobs: BlobStore) -> None:
    expected, target = listing(folder), take(folder, blobs).digest
    (folder / "sub" / "other").unlink()
    (folder / "sub" / "other").hardlink_to(folder / "file")
    put_back(folder, target, blobs)
    assert listing(folder) == expected


def test_a_restore_that_was_cut_off_is_completed_by_another(
    folder: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, target = listing(folder), take(folder, blobs).digest
    renames = 0
    really = os.rename
    trees.remove(os.fsencode(folder / "sub"))
    trees.remove(os.fsencode(folder / "file"))

    def failing(*arguments: Any, **options: Any) -> None:
        nonlocal renames
        renames += 1
        if renames == 2:
            raise OSError(28, "No space left on device")
        really(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing)
        with pytest.raises(OSError, match="No space left"):
            put_back(folder, target, blobs)
    assert listing(folder) != expected
    assert not (folder.parent / restore.STAGE).exists()
    put_back(folder, target, blobs)
    assert listing(folder) == expected


def test_what_a_killed_restore_left_is_removed_by_one_that_has_nothing_to_do(folder: Path, blobs: BlobStore) -> None:
    (folder.parent / restore.STAGE / "new-0").mkdir(parents=True)
    put_back(folder, take(folder, blobs).digest, blobs)
    assert not (folder.parent / restore.STAGE).exists()


def test_locked_folders_are_changed_and_removed(unprivileged: Path) -> None:
    folder, blobs = make_tree(unprivileged / "tree"), BlobStore(unprivileged / "blobs")
    expected, target = listing(folder), take(folder, blobs).digest
    (folder / "sub" / "other").write_text("changed")
    (folder / "new" / "locked").mkdir(parents=True)
    (folder / "new" / "locked" / "file").touch()
    for name in ("sub", "new/locked", "new"):
        (folder / name).chmod(0o500)
    put_back(folder, target, blobs)
    assert listing(folder) == expected


# ---- never beyond the tree


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What links planted in a tree point to."""
    (tmp_path / "outside" / "inner").mkdir(parents=True)
    (tmp_path / "outside" / "other").write_text("other")
    return tmp_path / "outside"


def swap(path: Path, target: Path) -> None:
    trees.remove(os.fsencode(path))
    path.symlink_to(target)


PLANTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a file whose mode is set": (lambda root: (root / "sub" / "other").chmod(0o600), "sub/other", "other"),
    "a folder that is written to": (lambda root: (root / "sub" / "other").unlink(), "sub", "."),
    "a folder that is emptied": (lambda root: (root / "sub" / "inner" / "x").touch(), "sub/inner", "."),
    "a folder whose mode is set": (lambda root: (root / "sub").chmod(0o711), "sub", "."),
}


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("uid", [0, 1000])
def test_a_link_planted_after_the_trees_were_compared_is_not_followed(
    folder: Path, outside: Path, blobs: BlobStore, plant: str, uid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: uid)
    modify, place, points_to = PLANTS[plant]
    target = take(folder, blobs).digest
    modify(folder)
    present = take(folder, blobs).digest
    swap(folder / place, outside / points_to)
    before, mode = listing(outside), outside.stat()
    with opened(folder) as root, pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        restore.apply(root, present, target, blobs)
    assert listing(outside) == before
    assert outside.stat() == mode
    put_back(folder, target, blobs)
    assert take(folder, blobs).digest == target


def test_what_a_link_in_the_way_points_to_is_neither_written_nor_removed(
    folder: Path, outside: Path, blobs: BlobStore
) -> None:
    target = take(folder, blobs).digest
    (folder / "new").mkdir()
    (folder / "file").unlink()
    present = take(folder, blobs).digest
    swap(folder / "new", outside)
    (folder / "file").symlink_to(outside / "other")
    before = listing(outside)
    with opened(folder) as root:
        restore.apply(root, present, target, blobs)
    assert listing(outside) == before
    assert (folder / "file").read_text() == "file"
    assert not (folder / "file").is_symlink()
    assert not os.path.lexists(folder / "new")


def test_a_file_that_lost_its_name_in_the_workspace_is_not_mistaken_for_ours(
    folder: Path, outside: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sub" / "other").unlink()
    (folder / "sub" / "other").hardlink_to(outside / "other")
    target = take(folder, blobs).digest
    (folder / "sub" / "other").chmod(0o600)
    present = take(folder, blobs).digest
    (outside / "other").chmod(0o644)
    really = os.open

    def losing(path: bytes, *arguments: Any, **options: Any) -> int:
        opened = really(path, *arguments, **options)
        if os.fstat(opened).st_ino == (outside / "other").stat().st_ino:
            (folder / "sub" / "other").unlink(missing_ok=True)
        return opened

    with opened(folder) as root, monkeypatch.context() as patch:
        patch.setattr(os, "open", losing)
        os.utime(outside / "other", (5, 5))
        before = listing(outside)
        restore.apply(root, present, target, blobs)
    assert listing(outside) == before
    assert (folder / "sub" / "other").read_text() == "other"


def test_set_user_id_never_comes_back(folder: Path, blobs: BlobStore) -> None:
    (folder / "file").chmod(0o6755)
    target = take(folder, blobs).digest
    (folder / "file").unlink()
    put_back(folder, target, blobs)
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o755


# ---- blobs that are not there


@pytest.mark.parametrize("spoil", [lose, damage], ids=["missing", "damaged"])
@pytest.mark.parametrize("which", ["root", "subfolder", "content", "content below"])
def test_what_cannot_be_read_is_found_before_anything_is_touched(
    folder: Path, tmp_path: Path, blobs: BlobStore, which: str, spoil: Callable[[Path, str], object]
) -> None:
    target = take(folder, blobs).digest
    top = manifest.load(target, blobs)
    below = manifest.load(top[b"sub"].content, blobs)
    (folder / "file").write_text("changed")
    shutil.rmtree(folder / "sub")
    with opened(folder) as root:
        present = snapshot.take(root, blobs).digest
        digest = {
            "root": target,
            "subfolder": top[b"sub"].content,
            "content": top[b"file"].content,
            "content below": below[b"other"].content,
        }[which]
        blobs.forget()
        spoil(tmp_path / "blobs", digest)
        before = listing(folder)
        with pytest.raises((BlobMissing, BlobDamaged)):
            restore.apply(root, present, target, blobs)
    assert listing(folder) == before
    assert not (tmp_path / restore.STAGE).exists()


# ---- on the disk


def test_what_was_written_is_synced_when_a_restore_returns(
    folder: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = take(folder, blobs).digest
    (folder / "file").write_text("changed")
    (folder / "sub" / "other").unlink()
    synced: list[bytes] = []

    def sync(descriptor: int) -> None:
        synced.append((folder / "file").read_bytes())
        durable.sync_file_system(descriptor)

    with opened(folder) as root:
        present = snapshot.take(root, blobs).digest
        monkeypatch.setattr(restore, "sync_file_system", sync)
        restore.apply(root, present, target, blobs)
    assert synced == [(folder / "file").read_bytes()] != [b"changed"]
    assert (folder / "sub" / "other").exists()


def test_what_stays_as_it_is_is_synced_too(folder: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    target = take(folder, blobs).digest
    synced: list[str] = []
    monkeypatch.setattr(restore, "sync_file_system", lambda root: synced.append(os.readlink(f"/proc/self/fd/{root}")))
    with opened(folder) as root:
        restore.apply(root, target, target, blobs)
    assert synced == [str(folder)]


def test_what_is_new_is_made_away_from_what_was_removed(
    folder: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = take(folder, blobs).digest
    asked: list[tuple[int, int]] = []
    names: list[bytes] = []

    def ioctl(descriptor: int, request: int, given: bytes) -> bytes:
        assert os.readlink(f"/proc/self/fd/{descriptor}").endswith(restore.STAGE)
        asked.append((request, struct.unpack("l", given)[0]))
        return struct.pack("l", 0x80000)

    def make(self: builder.Builder, name: bytes, entry: Entry, path: bytes) -> bool:
        names.append(name)
        return made(self, name, entry, path)

    made = builder.Builder.make
    monkeypatch.setattr(builder.Builder, "make", make)
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    for _ in range(2):
        (folder / "file").write_text("changed")
        with opened(folder) as root:
            restore.apply(root, snapshot.take(root, blobs).digest, target, blobs)
    # FS_IOC_GETFLAGS; FS_IOC_SETFLAGS with what there was and EXT4_TOPDIR_FL.
    assert asked == 2 * [(0x80086601, 0), (0x40086602, 0xA0000)]
    assert len(set(names)) == len(names) == 2

    def none(descriptor: int, request: int, given: bytes) -> bytes:
        raise OSError(errno.ENOTTY, "this file system has no flags")

    monkeypatch.setattr(fcntl, "ioctl", none)
    put_back(folder, target, blobs)
