"""Chosen paths are set back, all else stays; and what would be done is told before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from sandkeep.events import BlobStore
from sandkeep.sandboxes import chosen, preview, restore, snapshot
from sandkeep.sandboxes.errors import OutsideWorkspace, PathNotFound
from sandkeep.sandboxes.preview import Planned

from .support import listing, opened, take


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small tree with some depth, and with a file that has two names."""
    root = tmp_path / "tree"
    (root / "a" / "b").mkdir(parents=True)
    for name in ("one", "a/two", "a/b/three"):
        (root / name).write_text(name)
    (root / "again").hardlink_to(root / "one")
    return root


def choose(folder: Path, target: str, paths: Sequence[str], blobs: BlobStore) -> tuple[Planned, ...]:
    """Set chosen paths back, having looked at what that does."""
    with opened(folder) as root:
        present = snapshot.take(root, blobs).digest
        wanted = chosen.graft(present, target, chosen.parse(paths), blobs)
        told = preview.outline(present, wanted, blobs)
        restore.apply(root, present, wanted, blobs)
        assert restore.check(snapshot.take(root, blobs).digest, wanted, blobs) == ()
    return told


def test_only_what_is_chosen_is_set_back(folder: Path, blobs: BlobStore) -> None:
    target, before = take(folder, blobs).digest, listing(folder)
    for name in ("one", "a/two", "a/b/three"):
        (folder / name).write_text("changed")
    (folder / "a" / "b" / "new").touch()
    now = listing(folder)
    told = choose(folder, target, ["a/b", "a/b/three", "/workspace/a/x/../b/"], blobs)
    after = listing(folder)
    assert {path for path in now.keys() | after.keys() if now.get(path) != after.get(path)} == {
        *(b"a/b", b"a/b/three", b"a/b/new")
    }
    assert {path: each for path, each in after.items() if path.startswith(b"a/b")} == {
        path: each for path, each in before.items() if path.startswith(b"a/b")
    }
    assert told == (Planned("a/b/new", "delete", "file"), Planned("a/b/three", "replace", "file"))


def test_what_was_removed_comes_back_with_the_folders_above_and_nothing_else(folder: Path, blobs: BlobStore) -> None:
    target, before = take(folder, blobs).digest, listing(folder)
    shutil.rmtree(folder / "a")
    told = choose(folder, target, ["a/b/three"], blobs)
    assert sorted(path for path in listing(folder) if path.startswith(b"a")) == [b"a", b"a/b", b"a/b/three", b"again"]
    assert listing(folder)[b"a/b/three"] == before[b"a/b/three"]
    assert told == tuple(
        Planned(path, "create", kind) for path, kind in (("a", "folder"), ("a/b", "folder"), ("a/b/three", "file"))
    )


def test_a_file_in_the_way_of_a_chosen_path_gives_way(folder: Path, blobs: BlobStore) -> None:
    target = take(folder, blobs).digest
    shutil.rmtree(folder / "a")
    (folder / "a").hardlink_to(folder / "one")
    told = choose(folder, target, ["a/two"], blobs)
    assert (folder / "a" / "two").read_text() == "a/two"
    assert [(each.path, each.action) for each in told] == [("a", "replace"), ("a/two", "create")]


def test_what_the_checkpoint_lacks_is_taken_away(folder: Path, blobs: BlobStore) -> None:
    target, before = take(folder, blobs).digest, listing(folder)
    (folder / "new" / "inner").mkdir(parents=True)
    (folder / "new" / "inner" / "file").touch()
    root = os.stat(folder).st_mtime_ns
    told = choose(folder, target, ["new"], blobs)
    assert listing(folder) == before
    assert os.stat(folder).st_mtime_ns == root
    assert [(each.path, each.action) for each in told] == [
        *(("new", "delete"), ("new/inner", "delete"), ("new/inner/file", "delete"))
    ]


def test_what_neither_has_is_refused_before_anything_is_touched(folder: Path, blobs: BlobStore) -> None:
    target, before = take(folder, blobs).digest, listing(folder)
    for path in ("nothing", "a/nothing", "one/below", "nothing/below", "a/b/three/below/further"):
        with pytest.raises(PathNotFound):
            choose(folder, target, [path], blobs)
    for path in ("..", "/etc", "a/../../x"):
        with pytest.raises(OutsideWorkspace):
            choose(folder, target, [path], blobs)
    assert listing(folder) == before


def test_all_of_the_workspace_can_be_chosen(folder: Path, blobs: BlobStore) -> None:
    target, before = take(folder, blobs).digest, listing(folder)
    shutil.rmtree(folder / "a")
    choose(folder, target, ["one", "."], blobs)
    assert listing(folder) == before


def test_one_of_the_names_of_a_file_is_set_back_alone(folder: Path, blobs: BlobStore) -> None:
    target = take(folder, blobs).digest
    (folder / "one").write_text("changed")
    choose(folder, target, ["again"], blobs)
    assert ((folder / "one").read_text(), (folder / "again").read_text()) == ("changed", "one")
    (folder / "again").unlink()
    (folder / "again").hardlink_to(folder / "one")
    choose(folder, target, ["a"], blobs)
    assert (folder / "again").samefile(folder / "one")
    choose(folder, target, ["again", "one"], blobs)
    assert (folder / "again").samefile(folder / "one")
    assert (folder / "again").read_text() == "one"


def test_names_of_a_file_that_did_not_change_stay_together(folder: Path, blobs: BlobStore) -> None:
    target = take(folder, blobs).digest
    (folder / "a" / "two").write_text("changed")
    assert [each.path for each in choose(folder, target, ["again", "a/two"], blobs)] == ["a/two"]
    assert (folder / "again").samefile(folder / "one")


def test_what_would_be_done_is_told_of_modes_and_privileges(folder: Path, blobs: BlobStore) -> None:
    (folder / "a" / "two").chmod(0o4755)
    target = take(folder, blobs).digest
    (folder / "a" / "two").chmod(0o600)
    (folder / "a").chmod(0o700)
    os.utime(folder / "a" / "b", ns=(1, 1))
    present = take(folder, blobs).digest
    assert [(each.path, each.action) for each in preview.outline(present, target, blobs)] == [
        *(("a", "adjust"), ("a/two", "adjust"), ("a/two", "strip"))
    ]
    assert [(each.path, each.action) for each in preview.outline(present, target, blobs, privileges=True)] == [
        *(("a", "adjust"), ("a/two", "adjust"))
    ]
