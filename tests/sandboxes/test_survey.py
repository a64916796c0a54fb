"""Looking at a workspace again and again: every change is seen, and what did not change is not read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandkeep.events import BlobStore
from sandkeep.events.catalogue import Version
from sandkeep.sandboxes import survey
from sandkeep.sandboxes.survey import Seen

from . import trees
from .support import opened


def look(folder: Path, shadow: BlobStore, before: dict[str, Seen] | None = None) -> dict[str, Seen]:
    with opened(folder) as root:
        return survey.look(root, shadow, before or {})


def settled(folder: Path, seen: dict[str, Seen]) -> dict[str, Seen]:
    """As if all that was seen had been changed long before."""
    return {
        path: Seen(survey._looks(os.lstat(os.path.join(os.fsencode(folder), survey.raw(path)))), each.version)
        for path, each in seen.items()
    }


@given(st.binary(max_size=30))
def test_a_path_and_its_text_are_each_others_inverse(path: bytes) -> None:
    survey.text(path).encode()
    assert survey.raw(survey.text(path)) == path


def test_the_text_of_a_plain_path_is_itself() -> None:
    assert survey.text("src/mün\n.py".encode()) == "src/mün\n.py"
    assert survey.text(b"a\\xff\xff") == "a\\\\xff\\xff"


def test_a_hostile_tree_is_listed_whole_and_nothing_outside_is_touched(tmp_path: Path, blobs: BlobStore) -> None:
    folder = trees.hostile_tree(tmp_path / "tree")
    if os.getuid() == 0:
        os.mknod(folder / "device", 0o020600, os.makedev(1, 3))
    found = look(folder, blobs)
    expected = set()
    for parent, _, files in os.walk(os.fsencode(folder)):
        for name in files:
            path = os.path.relpath(os.path.join(parent, name), os.fsencode(folder))
            if b".git/" not in path and path != b"device":
                expected.add(survey.text(path))
    links = {
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, folders, _ in os.walk(folder)
        for name in folders
        if os.path.islink(os.path.join(parent, name))
    }
    assert set(found) == expected | links
    assert blobs.get(found["absolute"].version.digest) == b"/etc/passwd"
    assert blobs.get(found["binary"].version.digest) == (folder / "binary").read_bytes()
    assert survey.changes(found, look(folder, blobs, found)) == []


def test_only_what_was_touched_is_read_again(tmp_path: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree").mkdir()
    for name in "abc":
        (tmp_path / "tree" / name).write_text(name)
    before = settled(tmp_path / "tree", look(tmp_path / "tree", blobs))
    read: list[int] = []
    put = BlobStore.put_stream

    def noting(self: BlobStore, source: object, limit: int | None = None) -> tuple[str, int]:
        read.append(1)
        return put(self, source, limit)  # type: ignore[arg-type]

    monkeypatch.setattr(BlobStore, "put_stream", noting)
    assert look(tmp_path / "tree", blobs, before) == before
    assert read == []
    (tmp_path / "tree" / "b").write_text("B")
    (change,) = survey.changes(before, look(tmp_path / "tree", blobs, before))
    assert (change.path, len(read)) == ("b", 1)


def test_a_change_that_hides_behind_its_times_is_seen(tmp_path: Path, blobs: BlobStore) -> None:
    file = tmp_path / "tree" / "file"
    file.parent.mkdir()
    file.write_text("one")
    before = look(file.parent, blobs)
    assert before["file"].look == ()  # it was changed just now
    status = file.stat()
    file.write_text("two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [change.path for change in survey.changes(before, look(file.parent, blobs, before))] == ["file"]
    before = settled(file.parent, look(file.parent, blobs))
    file.write_text("six")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [change.path for change in survey.changes(before, look(file.parent, blobs, before))] == ["file"]


def test_a_large_file_is_told_apart_by_its_times(
    tmp_path: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "MAX_KEPT_BYTES", 10)
    file = tmp_path / "tree" / "file"
    file.parent.mkdir()
    file.write_bytes(b"x" * 11)
    before = look(file.parent, blobs)
    assert before["file"].version == Version("file", "", 11, 0o644)
    assert survey.changes(before, look(file.parent, blobs, before)) == []
    os.utime(file, ns=(1, 1))
    (change,) = survey.changes(before, look(file.parent, blobs, before))
    assert change.before == change.after


def test_a_rename_is_known_by_its_content(tmp_path: Path, blobs: BlobStore) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_text("content")
    (tree / "empty").touch()
    before = look(tree, blobs)
    (tree / "a").rename(tree / "b")
    (tree / "empty").rename(tree / "also empty")
    found = {change.path: change.renamed for change in survey.changes(before, look(tree, blobs, before))}
    assert found == {"a": "b", "also empty": "", "b": "", "empty": ""}


def test_what_lies_too_deep_is_left_out(tmp_path: Path, blobs: BlobStore) -> None:
    path = tmp_path / "tree"
    path.mkdir()
    descriptor = os.open(path, os.O_RDONLY)
    for _ in range(survey.MAX_DEPTH + 5):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    assert len(look(path, blobs)) == survey.MAX_DEPTH


def test_a_survey_that_is_damaged_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "survey"
    assert survey.load(file) is None
    found = survey.Survey(
        3, 2, {"c": survey.Run("ann", 1)}, {"ann": 1}, {"p": Seen((1, 2), Version("file", "d", 1, 2))}
    )
    survey.save(file, found)
    assert survey.load(file) == found
    for damage in (b"", b"\xc1", file.read_bytes()[:-1]):
        file.write_bytes(damage)
        assert survey.load(file) is None


@settings(max_examples=40)
@given(trees.trees, trees.changes)
def test_after_any_changes_the_survey_is_what_a_new_one_finds(tree: trees.Folder, changes: list[trees.Change]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, shadow = Path(name) / "tree", BlobStore(Path(name) / "shadow", synced=False)
        trees.make(os.fsencode(folder), tree)
        before = look(folder, shadow)
        for change in changes:
            trees.change(folder, change)
        again, anew = look(folder, shadow, before), look(folder, shadow)
        assert {path: seen.version for path, seen in again.items()} == {p: s.version for p, s in anew.items()}
        assert {change.path for change in survey.changes(before, again)} == {
            path
            for path in before.keys() | anew.keys()
            if path not in before or path not in anew or before[path].version != anew[path].version
        }
        trees.remove(os.fsencode(folder))
