"""The way down: bounded, never through a link, and lost rather than wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandkeep.sandboxes import descent, workspace
from sandkeep.sandboxes.descent import KEPT, Descent, OtherMount, WayLost

from .support import opened
from .trees import deep


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_way_down_and_up_leads_through_the_same_folders_with_few_of_them_open(tmp_path: Path) -> None:
    depth = 3 * KEPT
    (tmp_path / "tree").mkdir()
    deep(tmp_path / "tree", depth)
    with opened(tmp_path / "tree") as root:
        before = descriptors()
        with Descent(root) as way:
            inodes = [os.fstat(way.folder).st_ino]
            for level in range(depth):
                assert way.depth == level
                inodes.append(way.enter(b"d").st_ino)
                assert descriptors() - before <= KEPT + 1
            for inode in reversed(inodes[:-1]):
                way.leave()
                assert os.fstat(way.folder).st_ino == inode
            assert way.folder == root
        assert descriptors() == before
    workspace.remove(tmp_path / "tree")


def test_it_closes_what_is_open_wherever_it_ends(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    deep(tmp_path / "tree", 2 * KEPT)
    with opened(tmp_path / "tree") as root:
        before = descriptors()
        for up in (0, 1, KEPT + 5):
            with Descent(root) as way:
                for _ in range(2 * KEPT):
                    way.enter(b"d")
                for _ in range(up):
                    way.leave()
            assert descriptors() == before
    workspace.remove(tmp_path / "tree")


def test_a_folder_that_was_moved_while_it_was_not_open_is_not_taken_for_another(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    deep(tmp_path / "tree", KEPT + 10)
    (tmp_path / "other").mkdir()
    with opened(tmp_path / "tree") as root:
        before = descriptors()
        with Descent(root) as way:
            for _ in range(KEPT + 10):
                way.enter(b"d")
            first = tmp_path / "tree" / "/".join("d" * 11)
            first.rename(tmp_path / "other" / "d")
            for _ in range(KEPT - 1):
                way.leave()
            with pytest.raises(WayLost):
                way.leave()
        assert descriptors() == before


@pytest.mark.parametrize("what", ["link", "file", "nothing"])
def test_nothing_but_a_folder_is_entered(tmp_path: Path, what: str) -> None:
    (tmp_path / "tree").mkdir()
    if what == "link":
        (tmp_path / "tree" / "d").symlink_to("/etc")
    elif what == "file":
        (tmp_path / "tree" / "d").touch()
    with opened(tmp_path / "tree") as root, Descent(root) as way:
        with pytest.raises(OSError, match="d"):
            way.enter(b"d")
        assert (way.depth, way.folder) == (0, root)


def test_no_mount_is_entered() -> None:
    with opened(Path("/")) as root, Descent(root) as way:
        before = descriptors()
        with pytest.raises(OtherMount):
            way.enter(b"proc")
        assert descriptors() == before
    assert descent.FOLDER & os.O_NOFOLLOW
