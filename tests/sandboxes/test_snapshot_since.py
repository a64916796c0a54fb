"""Snapshots since another: what they cost is what has changed, and what they record is what one from scratch would."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from sandkeep.events import BlobStore
from sandkeep.sandboxes import content, manifest, restore, seen, snapshot, snapshot_walk, workspace
from sandkeep.sandboxes.errors import CheckpointRefused
from sandkeep.sandboxes.seen import RACY_NS, Seen, SeenStore
from sandkeep.sandboxes.snapshot_walk import Taken

from .support import opened, take
from .trees import Change, Folder, change, changes, deep, hostile_tree, make, remove, trees


def take_since(folder: Path, blobs: BlobStore, before: Seen | None) -> Taken:
    with opened(folder) as root:
        return snapshot.take_since(root, blobs, before)


def settle() -> None:
    """Let the last change become old enough to be relied on."""
    time.sleep(RACY_NS * 2.5e-9)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A tree with folders, links, a fifo, a hard link and files, that has come to rest."""
    yield hostile_tree(tmp_path / "tree")
    workspace.remove(tmp_path / "tree")


def test_nothing_is_read_and_nothing_stored_where_nothing_has_changed(
    tree: Path, tmp_path: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle()
    first = take_since(tree, blobs, None)
    assert first.read > 20
    packs = {path: path.stat().st_size for path in (tmp_path / "blobs" / "packs").glob("*.pack")}
    monkeypatch.setattr(os, "listdir", None)
    second = take_since(tree, blobs, first.seen)
    assert (second.snapshot, second.read) == (first.snapshot, 0)
    assert {path: path.stat().st_size for path in packs} == packs


CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "a file is written": (lambda tree: (tree / "binary").write_bytes(b"new"), 1),
    "a file is written, and its time set back": (lambda tree: in_secret(tree / "binary"), 1),
    "a file is made": (lambda tree: (tree / "nested" / "new").touch(), 1),
    "a file is removed": (lambda tree: (tree / "binary").unlink(), 0),
    "a file takes the place of another": (lambda tree: (tree / "binary").rename(tree / "nested" / "file"), 1),
    "a folder is made": (lambda tree: (tree / "new").mkdir(), 0),
    "a folder is removed": (lambda tree: (tree / "nested" / "empty" / "emptier").rmdir(), 0),
    "a folder is moved": (lambda tree: (tree / "nested" / "repository").rename(tree / "moved"), 1),
    "a folder takes the place of a file": (lambda tree: swap(tree / "binary", os.mkdir), 0),
    "a file takes the place of a folder": (lambda tree: swap(tree / "nested" / "empty", Path.touch), 1),
    "a mode is changed": (lambda tree: (tree / "binary").chmod(0o600), 1),
    "the mode of a folder is changed": (lambda tree: (tree / "nested").chmod(0o700), 0),
    "the mode of the workspace is changed": (lambda tree: tree.chmod(0o700), 0),
    "an attribute is set": (lambda tree: os.setxattr(tree / "binary", "user.x", b"y"), 1),
    "an attribute of a folder is set": (lambda tree: os.setxattr(tree / "nested", "user.x", b"y"), 0),
    "a link points elsewhere": (lambda tree: swap(tree / "upward", lambda path: path.symlink_to("x")), 1),
    "a name is added to a file": (lambda tree: (tree / "nested" / "hard three").hardlink_to(tree / "hard one"), 1),
    "a name is taken from a file": (lambda tree: (tree / "hard two").unlink(), 1),
    "a hole is filled": (lambda tree: fill(tree / "sparse"), 1),
}


def in_secret(path: Path) -> None:
    found = path.stat()
    path.write_bytes(bytes(found.st_size))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def swap(path: Path, make: Callable[[Path], object]) -> None:
    remove(os.fsencode(path))
    make(path)


def fill(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"data")


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("what", CHANGES)
def test_what_has_changed_is_found_and_no_more_than_that_is_read(
    tree: Path, tmp_path: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, what: str, processes: int
) -> None:
    monkeypatch.setattr(snapshot, "LARGE", 0 if processes == 2 else snapshot.LARGE)
    settle()
    first = take_since(tree, blobs, None)
    act, read = CHANGES[what]
    act(tree)
    second = take_since(tree, blobs, first.seen)
    anew = take(tree, BlobStore(tmp_path / "other"))
    assert second.snapshot == anew
    assert second.snapshot.digest != first.snapshot.digest
    assert second.read <= read
    settle()
    third = take_since(tree, blobs, second.seen)
    fourth = take_since(tree, blobs, third.seen)
    assert (third.snapshot, fourth.snapshot, fourth.read) == (anew, anew, 0)


@settings(max_examples=40, deadline=None)
@given(trees, changes, changes)
def test_a_snapshot_since_another_is_one_from_scratch(node: Folder, some: list[Change], more: list[Change]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "tree"
        make(os.fsencode(folder), node)
        blobs = BlobStore(Path(name) / "blobs")
        before = None
        for each in ([], some, more, []):
            for one in each:
                change(folder, one)
            taken = take_since(folder, blobs, before)
            assert taken.snapshot == take(folder, BlobStore(Path(name) / "other"))
            before = taken.seen
        workspace.remove(folder)


@settings(max_examples=40, deadline=None)
@given(trees, changes, changes)
def test_after_a_restore_it_is_enough_to_look_at_what_was_touched(
    node: Folder, some: list[Change], more: list[Change]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "tree"
        make(os.fsencode(folder), node)
        blobs = BlobStore(Path(name) / "blobs")
        for one in some:
            change(folder, one)
        target = take_since(folder, blobs, None)
        for one in more:
            change(folder, one)
        present = take_since(folder, blobs, target.seen)
        with opened(folder) as root:
            touched = restore.apply(root, present.snapshot.digest, target.snapshot.digest, blobs)
            found = snapshot.take_touched(root, blobs, present.seen, touched)
        assert found.snapshot == take(folder, BlobStore(Path(name) / "other"))
        assert take_since(folder, blobs, found.seen).snapshot == found.snapshot
        workspace.remove(folder)


def test_what_was_not_touched_is_taken_as_it_was_seen(tree: Path, blobs: BlobStore) -> None:
    settle()
    first = take_since(tree, blobs, None)
    (tree / "binary").write_bytes(b"touched")
    (tree / "nested" / "file").write_bytes(b"not said to be")
    (tree / "nested" / "repository" / "new").mkdir()
    with opened(tree) as root:
        found = snapshot.take_touched(root, blobs, first.seen, {b"nested": {b"repository": {}}})
    assert (found.read, found.snapshot.files, found.snapshot.torn) == (2, first.snapshot.files, ())
    entries = manifest.load(found.snapshot.digest, blobs)
    assert blobs.get(entries[b"binary"].content) == b"touched"
    assert b"new" in manifest.load(manifest.load(entries[b"nested"].content, blobs)[b"repository"].content, blobs)
    with opened(tree) as root:
        found = snapshot.take_touched(root, blobs, first.seen, {})
    assert (
        manifest.load(found.snapshot.digest, blobs)[b"nested"] == manifest.load(first.snapshot.digest, blobs)[b"nested"]
    )
    assert take_since(tree, blobs, found.seen).snapshot == take(tree, blobs)


def test_what_was_too_young_is_read_again(tmp_path: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A further change within a tick of the clock has the same time."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("one")
    settle()
    first = take_since(tmp_path / "tree", blobs, None)
    assert take_since(tmp_path / "tree", blobs, first.seen).read == 0
    monkeypatch.setattr(seen, "RACY_NS", 10**18)
    young = take_since(tmp_path / "tree", blobs, None)
    assert take_since(tmp_path / "tree", blobs, young.seen).read == 1


def test_a_file_that_was_torn_is_read_again(tree: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    settle()
    read = content._read

    def touching(descriptor: int, *rest: Any) -> Any:
        found = read(descriptor, *rest)
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("binary"):
            os.utime(tree / "binary")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(content, "_read", touching)
        first = take_since(tree, blobs, None)
    assert first.snapshot.torn == ("binary",)
    second = take_since(tree, blobs, first.seen)
    assert (second.snapshot.torn, second.read) == ((), 1)


def test_what_the_store_has_lost_is_read_and_stored_again(tree: Path, tmp_path: Path, blobs: BlobStore) -> None:
    settle()
    first = take_since(tree, blobs, None)
    blobs.sweep(lambda digest: False, -1)
    second = take_since(tree, blobs, first.seen)
    assert (second.snapshot, second.read) == (first.snapshot, first.read)
    assert len(list(manifest.blobs_of(second.snapshot.digest, blobs))) > 20
    assert list(blobs.verify()) == []


def test_what_the_store_still_has_after_a_sweep_is_not_read_again(tree: Path, blobs: BlobStore) -> None:
    settle()
    first = take_since(tree, blobs, None)
    with blobs.batch() as batch:
        batch.put(b"garbage")
    kept = set(manifest.blobs_of(first.snapshot.digest, blobs))
    assert blobs.sweep(kept.__contains__, -1)[0] == 1
    assert blobs.epoch() != first.seen.epoch
    second = take_since(tree, blobs, first.seen)
    assert (second.snapshot, second.read, second.seen.epoch) == (first.snapshot, 0, blobs.epoch())


def test_what_was_seen_of_another_folder_counts_for_nothing(tmp_path: Path, blobs: BlobStore) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    settle()
    first = take_since(tmp_path / "one", blobs, None)
    second = take_since(tmp_path / "two", blobs, first.seen)
    assert (second.read, second.snapshot.digest) == (1, take(tmp_path / "two", blobs).digest)


def test_what_was_seen_before_a_snapshot_that_failed_still_holds(
    tree: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle()
    first = take_since(tree, blobs, None)
    (tree / "binary").write_bytes(b"changed")
    (tree / "nested" / "file").write_bytes(b"changed")
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(snapshot_walk, "store_root", full)
        with pytest.raises(OSError, match="No space"):
            take_since(tree, blobs, first.seen)
    second = take_since(tree, blobs, first.seen)
    assert second.snapshot == take(tree, blobs)
    assert list(manifest.blobs_of(second.snapshot.digest, blobs))


# ---- held still


@pytest.mark.parametrize("processes", [1, 2])
def test_what_changes_before_all_stands_still_is_recorded_and_nothing_after(
    tree: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(snapshot, "LARGE", 0 if processes == 2 else snapshot.LARGE)
    settle()
    log: list[str] = []

    @contextlib.contextmanager
    def still() -> Iterator[bool]:
        (tree / "binary").write_bytes(b"the last that was written")
        (tree / "nested" / "last").touch()
        log.append("still")
        yield True
        log.append("goes on")
        (tree / "binary").write_bytes(b"too late")

    with opened(tree) as root:
        taken = snapshot.take_since(root, blobs, None, still=still())
    found = manifest.load(taken.snapshot.digest, blobs)
    assert blobs.get(found[b"binary"].content) == b"the last that was written"
    assert b"last" in manifest.load(found[b"nested"].content, blobs)
    assert (log, taken.snapshot.torn) == (["still", "goes on"], ())
    assert taken.snapshot.frozen_ns > 0
    again = take_since(tree, blobs, taken.seen)
    assert blobs.get(manifest.load(again.snapshot.digest, blobs)[b"binary"].content) == b"too late"


# ---- deep, wide, and other file systems


def test_a_deep_tree_is_recorded_again_and_its_cache_kept(tmp_path: Path, blobs: BlobStore) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    try:
        deep(folder, 4000)
        settle()
        first = take_since(folder, blobs, None)
        SeenStore(tmp_path / "seen").keep("task", first.seen, 10**9)
        seen = SeenStore(tmp_path / "seen").of("task")
        assert seen is not None
        second = take_since(folder, blobs, seen)
        assert second.snapshot == first.snapshot
    finally:
        workspace.remove(folder)


def test_a_change_in_a_wide_folder_stores_a_small_part_of_it_again(tmp_path: Path, blobs: BlobStore) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    for number in range(5000):
        (folder / f"file {number}").touch()
    settle()
    first = take_since(folder, blobs, None)
    (folder / "file 2500").chmod(0o600)
    second = take_since(folder, blobs, first.seen)
    one, two = (set(manifest.nodes(each.snapshot.digest, blobs)) for each in (first, second))
    assert len(one) > 5
    assert len(two - one) == 1
    assert second.snapshot == take(folder, BlobStore(tmp_path / "other"))


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_is_mounted_in_a_workspace_refuses_the_snapshot(tmp_path: Path, blobs: BlobStore, what: str) -> None:
    place = tmp_path / "tree" / "place"
    place.parent.mkdir()
    if what == "folder":
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "none", str(place)]
    else:
        place.touch()
        command = ["mount", "--bind", "/proc/version", str(place)]
    code = (
        "import os, sys; from pathlib import Path; from sandkeep.events import BlobStore;"
        "from sandkeep.sandboxes import snapshot;"
        "snapshot.take(os.open(sys.argv[1], os.O_RDONLY), BlobStore(Path(sys.argv[2])))"
    )
    # In a mount namespace of its own, so that nothing is left mounted.
    script = f'mount --make-rprivate / && {" ".join(command)} && exec "$@"'
    mine = [sys.executable, "-P", "-c", code, str(place.parent), str(tmp_path / "blobs")]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *mine], capture_output=True, text=True, check=False
    )
    assert "'place' is another file system" in done.stderr, done.stderr
    assert CheckpointRefused.__name__ in done.stderr
