"""Repositories that were worked in on two sides, merged without git, and then asked by git."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from sandkeep.events import BlobStore
from sandkeep.sandboxes import git_sides, merging, refs, three_way
from sandkeep.sandboxes.three_way import Overlap
from sandkeep.sandboxes.tree import Tree

from .support import git, make_repository, opened, take

Act = Callable[[Path], object]


def commit(folder: Path, name: str, content: str = "") -> str:
    """A commit of a new file, and its id."""
    (folder / name).write_text(content or name)
    git(folder, "add", name)
    git(folder, "commit", "--quiet", "--message", name)
    return git(folder, "rev-parse", "HEAD")


def nothing(folder: Path) -> None:
    """This side did nothing."""


class Sides:
    """Three copies of a repository of one commit: as it was, the own, and theirs."""

    def __init__(self, folder: Path, base: Act = nothing) -> None:
        self.blobs = BlobStore(folder / "blobs")
        self.base, self.own, self.theirs = (folder / name for name in ("base", "own", "theirs"))
        make_repository(self.base)
        base(self.base)
        for side in (self.own, self.theirs):
            shutil.copytree(self.base, side, symlinks=True)

    def merge(self, *, check: bool = True) -> list[Overlap]:
        """Bring what was done in `own` into `theirs`; what collides."""
        was, mine, there = (
            Tree(take(side, self.blobs).digest, self.blobs) for side in (self.base, self.own, self.theirs)
        )
        with opened(self.own) as own, opened(self.theirs) as theirs:
            files = three_way.plan(was, mine, there)
            follows = partial(refs.follows, own), partial(refs.follows, theirs)
            found = git_sides.plan(was, mine, there, *follows, self.blobs)
            merging.write(theirs, (*files.steps, *found.steps), self.blobs)
        if check:
            git(self.theirs, "fsck", "--strict")
        return [*files.overlaps, *found.overlaps]

    def at(self, branch: str) -> str:
        return git(self.theirs, "rev-parse", branch)

    def status(self) -> str:
        return git(self.theirs, "status", "--porcelain")

    def commit_of(self, overlap: Overlap, side: str) -> str:
        found = getattr(overlap, side)
        return "" if found is None else self.blobs.get(found.digest).decode().strip()


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    return Sides(tmp_path)


def test_what_only_the_own_side_committed_is_there_and_clean(sides: Sides) -> None:
    last = commit(sides.own, "mine")
    git(sides.own, "tag", "v1")
    assert sides.merge() == []
    assert (sides.at("main"), sides.at("v1"), sides.status()) == (last, last, "")
    assert (sides.theirs / "mine").read_text() == "mine"


def test_a_branch_that_both_moved_stays_and_the_own_commit_is_there(sides: Sides) -> None:
    mine, there = commit(sides.own, "mine"), commit(sides.theirs, "theirs")
    (found,) = sides.merge()
    assert (found.path, sides.at("main")) == (".git/refs/heads/main", there)
    assert [sides.commit_of(found, side) for side in ("base", "ours", "theirs")] == [
        git(sides.base, "rev-parse", "main"), mine, there,
    ]  # fmt: skip
    assert sides.status() == "?? mine"
    git(sides.theirs, "add", "mine")
    git(sides.theirs, "commit", "--quiet", "--message", "what was merged")
    git(sides.theirs, "merge", "--quiet", "--message", "and where it came from", mine)
    assert sides.status() == ""


def test_a_branch_that_goes_on_from_theirs_is_taken_with_what_is_checked_out(sides: Sides) -> None:
    there = commit(sides.theirs, "theirs")
    git(sides.own, "pull", "--quiet", "--ff-only", str(sides.theirs), "main")
    last = commit(sides.own, "mine")
    assert there != last
    assert sides.merge() == []
    assert (sides.at("main"), sides.status()) == (last, "")


def test_a_branch_that_theirs_went_on_from_stays(sides: Sides) -> None:
    commit(sides.own, "mine")
    git(sides.theirs, "pull", "--quiet", "--ff-only", str(sides.own), "main")
    last = commit(sides.theirs, "theirs")
    assert sides.merge() == []
    assert (sides.at("main"), sides.status()) == (last, "")


def test_a_branch_is_not_put_under_what_others_have_staged(sides: Sides) -> None:
    mine = commit(sides.own, "mine")
    (sides.theirs / "staged").write_text("theirs")
    git(sides.theirs, "add", "staged")
    (found,) = sides.merge()
    assert (found.path, sides.commit_of(found, "ours")) == (".git/refs/heads/main", mine)
    assert sides.status() == "A  staged\n?? mine"


def test_looking_at_the_status_is_no_change(sides: Sides) -> None:
    last = commit(sides.own, "mine")
    (sides.theirs / "README").write_text("other")
    (sides.theirs / "README").write_text("hello\n")
    before = (sides.theirs / ".git" / "index").read_bytes()
    git(sides.theirs, "status")
    assert (sides.theirs / ".git" / "index").read_bytes() != before
    assert sides.merge() == []
    assert (sides.at("main"), sides.status()) == (last, "")


def test_other_branches_are_taken_whatever_is_checked_out(sides: Sides) -> None:
    git(sides.own, "checkout", "--quiet", "-b", "topic/one")
    mine = commit(sides.own, "mine")
    there = commit(sides.theirs, "theirs")
    assert sides.merge() == []
    assert (sides.at("topic/one"), sides.at("main")) == (mine, there)
    assert git(sides.theirs, "symbolic-ref", "HEAD") == "refs/heads/main"


def test_what_was_checked_out_is_taken_as_a_whole(sides: Sides) -> None:
    git(sides.own, "checkout", "--quiet", "-b", "topic")
    last = commit(sides.own, "mine")
    assert sides.merge() == []
    assert git(sides.theirs, "symbolic-ref", "HEAD") == "refs/heads/topic"
    assert (sides.at("HEAD"), sides.status()) == (last, "")


@pytest.mark.parametrize("own_packs", [False, True])
@pytest.mark.parametrize("their_packs", [False, True])
def test_packing_moves_nothing_and_loses_nothing(sides: Sides, own_packs: bool, their_packs: bool) -> None:
    git(sides.theirs, "branch", "topic")
    mine, there = commit(sides.own, "mine"), commit(sides.theirs, "theirs")
    for side, packs in ((sides.own, own_packs), (sides.theirs, their_packs)):
        if packs:
            git(side, "gc", "--quiet")
    (found,) = sides.merge()
    assert (found.path, sides.commit_of(found, "ours")) == (".git/refs/heads/main", mine)
    assert (sides.at("main"), git(sides.theirs, "cat-file", "-t", mine)) == (there, "commit")
    assert sides.at("topic")


def test_objects_are_never_removed(sides: Sides) -> None:
    there = commit(sides.theirs, "theirs")
    git(sides.theirs, "reset", "--quiet", "--hard", "HEAD~")
    shutil.rmtree(sides.own / ".git" / "objects")
    (sides.own / ".git" / "objects").mkdir()
    sides.merge()
    assert git(sides.theirs, "cat-file", "-t", there) == "commit"


@pytest.mark.parametrize("packed", [False, True])
def test_a_branch_that_was_deleted_is(tmp_path: Path, packed: bool) -> None:
    def branch(folder: Path) -> None:
        git(folder, "branch", "topic")
        if packed:
            git(folder, "pack-refs", "--all")

    sides = Sides(tmp_path, branch)
    git(sides.own, "branch", "-D", "topic")
    assert sides.merge() == []
    assert git(sides.theirs, "branch", "--list", "topic") == ""


def test_a_branch_that_the_other_side_packed_cannot_be_deleted(tmp_path: Path) -> None:
    sides = Sides(tmp_path, lambda folder: git(folder, "branch", "topic"))
    git(sides.own, "branch", "-D", "topic")
    git(sides.theirs, "pack-refs", "--all")
    (found,) = sides.merge()
    assert (found.path, found.ours) == (".git/refs/heads/topic", None)
    assert sides.at("topic")


def test_a_branch_whose_name_leads_out_is_none(sides: Sides, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    names = ("../../../../outside/x", "./y", "a//b", "..")
    commit_id = git(sides.own, "rev-parse", "main")
    text = "".join(f"{commit_id} refs/heads/{name}\n" for name in (*names, "good"))
    (sides.own / ".git" / "packed-refs").write_text(text)
    (sides.theirs / ".git" / "packed-refs").write_text("# pack-refs with: peeled\n")
    assert sides.merge(check=False) == []
    assert sides.at("good") == commit_id
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_branch_that_has_no_place_collides(sides: Sides) -> None:
    git(sides.own, "branch", "topic/one")
    git(sides.theirs, "branch", "topic")
    (found,) = sides.merge()
    assert (found.path, found.theirs) == (".git/refs/heads/topic/one", None)


def test_the_repositorys_own_settings_stay_theirs_if_both_changed_them(sides: Sides) -> None:
    git(sides.own, "config", "a.own", "1")
    git(sides.theirs, "config", "a.theirs", "1")
    (sides.own / ".git" / "hooks").mkdir(exist_ok=True)
    (sides.own / ".git" / "hooks" / "post-commit").write_text("#!/bin/sh\n")
    (sides.own / ".git" / "index.lock").write_text("left by a git that was killed")
    assert sides.merge() == []
    assert git(sides.theirs, "config", "--get-regexp", "^a[.]") == "a.theirs 1"
    assert (sides.theirs / ".git" / "hooks" / "post-commit").exists()
    assert not (sides.theirs / ".git" / "index.lock").exists()


@pytest.mark.parametrize("both", [False, True])
def test_a_submodule_that_was_set_elsewhere(sides: Sides, both: bool) -> None:
    def point(folder: Path, digit: str) -> None:
        git(folder, "update-index", "--add", "--cacheinfo", f"160000,{digit * 40},vendored/lib")

    point(sides.own, "1")
    if both:
        point(sides.theirs, "2")
    found = sides.merge()
    index = git(sides.theirs, "ls-files", "--stage", "vendored/lib").split()[1]
    assert index == ("2" if both else "1") * 40
    assert [(each.path, sides.commit_of(each, "ours")) for each in found] == (
        [("vendored/lib/", "1" * 40)] if both else []
    )


def test_a_repository_that_was_removed_stays(sides: Sides) -> None:
    shutil.rmtree(sides.own / ".git")
    assert sides.merge() == []
    assert sides.status() == ""


def test_a_repository_that_was_made_is_taken(tmp_path: Path) -> None:
    sides = Sides(tmp_path)
    for side in (sides.base, sides.theirs):
        shutil.rmtree(side / ".git")
    assert sides.merge() == []
    assert (sides.at("main"), sides.status()) == (git(sides.own, "rev-parse", "main"), "")


def test_a_repository_further_down_is_files(tmp_path: Path) -> None:
    sides = Sides(tmp_path, lambda folder: make_repository(folder / "a.github" / "objects" / "inner"))
    inner = Path("a.github") / "objects" / "inner"
    last = commit(sides.own / inner, "mine")
    assert sides.merge() == []
    assert git(sides.theirs / inner, "rev-parse", "main") == last
    assert git(sides.theirs / inner, "status", "--porcelain") == ""
