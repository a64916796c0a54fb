"""Conflicts among agents, without an engine: what is found, of which kind, what is kept, and how it is settled."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from sandkeep.events import BadInput
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Rule
from sandkeep.projections import TaskState
from sandkeep.sandboxes import Keep
from sandkeep.sandboxes.errors import ConflictNotFound, ConflictRefused

from .agents import TASK, Team, lines
from .support import git, make_repository


@pytest.fixture
def team(keep: Keep) -> Team:
    return Team(keep)


@pytest.fixture
def two(team: Team) -> Team:
    """Ann and Bob, who know a file of nine lines."""
    team.put("file", lines())
    team.attach("ann", "bob")
    return team


# ---- what is found


def test_one_agent_alone_pays_nothing(team: Team) -> None:
    for number in range(3):
        assert team.write("ann", "file", str(number)) is None
    assert team.changes() == []
    assert not (team.keep.path / "tasks" / TASK / "shadow").exists()


def test_each_change_is_recorded_with_whose_it_is_and_what_was_there(two: Team) -> None:
    two.write("ann", "new", "1")
    two.run("bob", (two.workspace / "file").unlink)
    two.run("ann", lambda: (two.workspace / "new").chmod(0o600))
    assert two.changes() == [(("ann",), ["new"]), (("bob",), ["file"]), (("ann",), ["new"])]
    *_, removed, mode = (r.event for r in two.keep.log.read() if r.type == "PathsChanged")
    assert isinstance(removed, ev.PathsChanged)
    assert two.content(removed.changes[0].before) == lines().encode()
    assert isinstance(mode, ev.PathsChanged)
    assert [v and v.mode for v in (mode.changes[0].before, mode.changes[0].after)] == [0o644, 0o600]
    assert two.keep.verify().ok


def test_what_nobodys_command_did_is_nobodys_and_collides_with_nothing(two: Team) -> None:
    two.put("file", "from the host")
    two.write("ann", "file", "ann's")
    assert two.changes() == [((), ["file"]), (("ann",), ["file"])]
    assert two.found() == []


def test_who_writes_what_another_has_written_unseen_collides(two: Team) -> None:
    two.write("bob", "file", lines(l2="bob"))
    news = two.write("ann", "file", lines(l2="ann"))
    (found,) = two.found()
    assert (found.kind, found.path, found.agents, found.others) == ("same-region", "file", ("ann",), ("bob",))
    sides = [two.content(side) for side in (found.base, found.theirs, found.ours)]
    assert sides == [lines().encode(), lines(l2="bob").encode(), lines(l2="ann").encode()]
    assert news is not None
    assert (news.changed, [each.id for each in news.conflicts]) == ({"bob": 1}, [found.id])
    assert f"1 path changed by bob since you last looked; conflict {found.id} open" in str(news)
    for agent, expected in (("ann", [found]), ("bob", [found]), ("eve", [])):
        assert two.keep.conflicts_of(agent) == expected
    assert two.keep.verify().ok
    assert two.keep.collect_garbage(grace_seconds=-1) == (0, 0)


def test_who_was_told_does_not_collide(two: Team) -> None:
    two.write("bob", "file", "bob's")
    news = two.run("ann")
    assert news is not None
    assert news.changed == {"bob": 1}
    assert two.run("ann") is not None
    news = two.write("ann", "file", "ann's")
    assert news is not None
    assert (news.changed, news.conflicts, two.found()) == ({}, (), [])


def test_who_comes_later_knows_what_is_there(two: Team) -> None:
    two.write("bob", "file", "bob's")
    two.write("eve", "file", "eve's")
    assert two.found() == []


def test_the_same_collision_is_told_once(two: Team) -> None:
    two.write("bob", "file", "b")
    two.write("ann", "file", "a")
    two.write("bob", "file", "bb")
    assert len(two.conflicts.list()) == 2  # bob's own, with ann, is another
    two.write("ann", "file", "aa")
    assert len(two.conflicts.list()) == 2


def test_the_one_that_ends_last_collides_with_the_one_it_ran_beside(two: Team) -> None:
    ann, bob = two.begin("ann"), two.begin("bob")
    two.put("file", lines(l2="bob"))
    two.end("bob", bob)
    two.put("file", lines(l2="ann"))
    two.end("ann", ann)
    assert two.changes() == [(("ann", "bob"), ["file"]), (("ann",), ["file"])]
    (found,) = two.found()
    assert (found.agents, found.others) == (("ann",), ("bob",))
    assert two.content(found.base) == lines().encode()


def test_what_an_agent_was_told_meanwhile_an_older_command_of_it_cannot_know(two: Team) -> None:
    slow = two.begin("ann")
    two.write("bob", "file", lines(l2="bob"))
    two.attach("ann")
    two.put("file", lines(l2="ann"))
    two.end("ann", slow)
    (found,) = two.found()
    assert (found.agents, found.others, two.content(found.base)) == (("ann",), ("bob",), lines().encode())


def test_with_several_at_work_only_what_is_certain_collides(two: Team) -> None:
    ann, bob = two.begin("ann"), two.begin("bob")
    two.put("file", "either's")
    two.attach("eve")
    two.put("file", "either's again")
    two.end("ann", ann)
    two.end("bob", bob)
    assert two.found() == []
    two.run("eve")
    ann, bob = two.begin("ann"), two.begin("bob")
    two.write("eve", "other", "1")  # one of three
    two.end("ann", ann)
    two.end("bob", bob)
    assert two.found() == []
    assert two.changes()[-1] == (("ann", "bob", "eve"), ["other"])


def test_a_command_whose_process_died_is_one_of_those_that_ran(two: Team) -> None:
    two.begin("bob")
    two.put("file", "bob's")
    two.run("ann")
    assert two.changes() == [(("bob",), ["file"])]


def test_a_look_that_was_cut_off_is_not_recorded_twice(two: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    two.write("bob", "file", "bob's")
    with monkeypatch.context() as patch:
        patch.setattr("sandkeep.sandboxes.survey.save", failing)
        assert two.write("ann", "file", "ann's") is None
    before = two.changes()
    two.run("ann")
    assert two.changes() == before
    assert len(two.found()) == 1


# ---- kinds


def test_regions_that_do_not_overlap_are_merged_and_both_sides_kept(two: Team) -> None:
    two.write("bob", "file", lines(l2="bob"))
    news = two.write("ann", "file", lines(l8="ann"))
    assert two.read("file") == lines(l2="bob", l8="ann")
    (found,) = two.found()
    assert (found.kind, found.taken) == ("same-file", "merged")
    assert two.content(found.result) == two.read("file").encode()
    assert two.conflicts.list() == []
    assert "settled, merged taken" in str(news)
    two.run("ann")
    two.write("ann", "file", "on from there")
    assert (len(two.found()), two.changes()[-1]) == (1, (("ann",), ["file"]))


def test_a_merge_that_loses_nothing_writes_nothing(two: Team) -> None:
    two.write("bob", "file", lines(l2="bob"))
    two.write("ann", "file", lines(l2="bob", l8="ann"))
    (found,) = two.found()
    assert (found.taken, found.result) == ("merged", found.ours)


def test_a_mode_and_an_edit_are_merged(two: Team) -> None:
    two.run("bob", lambda: (two.workspace / "file").chmod(0o755))

    def rewrite() -> None:
        (two.workspace / "file").unlink()
        two.put("file", lines(l8="ann"))

    two.run("ann", rewrite)
    status = (two.workspace / "file").stat()
    assert (status.st_mode & 0o777, two.read("file")) == (0o755, lines(l8="ann"))


def test_binary_files_are_never_merged(two: Team) -> None:
    two.put("file", b"\0" + lines().encode())
    two.attach("ann", "bob")
    two.write("bob", "file", b"\0" + lines(l2="bob").encode())
    two.write("ann", "file", b"\0" + lines(l8="ann").encode())
    (found,) = two.conflicts.list()
    assert found.kind == "same-file"
    with pytest.raises(ConflictRefused, match="cannot be merged"):
        two.conflicts.resolve(found.id, "merged")


def test_deleting_collides_with_editing_both_ways(two: Team) -> None:
    two.write("bob", "file", "bob's")
    two.run("ann", (two.workspace / "file").unlink)
    two.write("bob", "file", "again")
    first, second = two.conflicts.list()
    assert (first.kind, first.ours, second.kind, second.theirs) == ("delete-edit", None, "delete-edit", None)
    two.conflicts.resolve(first.id, "theirs")
    assert two.read("file") == "bob's"
    two.conflicts.resolve(second.id, "theirs")
    assert not (two.workspace / "file").exists()


def test_a_file_renamed_here_and_edited_there(two: Team) -> None:
    two.run("bob", lambda: (two.workspace / "file").rename(two.workspace / "moved"))
    two.write("ann", "file", lines(l2="ann"))
    (found,) = two.conflicts.list()
    assert (found.kind, found.renamed, found.theirs) == ("rename", "moved", None)


def test_a_file_edited_there_and_renamed_here(two: Team) -> None:
    two.write("bob", "file", lines(l2="bob"))
    two.run("ann", lambda: (two.workspace / "file").rename(two.workspace / "moved"))
    (found,) = two.conflicts.list()
    assert (found.kind, found.renamed, found.ours) == ("rename", "moved", None)


def test_a_lock_file_is_not_merged(two: Team) -> None:
    two.put("app/uv.lock", lines())
    two.attach("ann", "bob")
    two.write("bob", "app/uv.lock", lines(l2="bob"))
    two.write("ann", "app/uv.lock", lines(l8="ann"))
    (found,) = two.conflicts.list()
    assert found.kind == "lock-file"
    assert two.read("app/uv.lock") == lines(l8="ann")


def test_a_file_where_another_had_made_a_folder(two: Team) -> None:
    def folder() -> None:
        (two.workspace / "file").unlink()
        two.put("file/inner", "x")

    two.write("bob", "file", "bob's")
    two.run("ann", folder)
    (found,) = two.conflicts.list()
    assert (found.kind, found.path) == ("delete-edit", "file")
    with pytest.raises(ConflictRefused, match="'file' cannot be written"):
        two.conflicts.resolve(found.id, "theirs")
    assert two.read("file/inner") == "x"
    assert len(two.conflicts.list()) == 1


def commit(folder: Path, name: str) -> None:
    git(folder, "commit", "--quiet", "--allow-empty", "--message", name)


@pytest.fixture
def cloned(team: Team) -> Team:
    """Ann and Bob, in a repository with a branch `other`."""
    team.workspace.rmdir()
    make_repository(team.workspace)
    git(team.workspace, "branch", "other")
    team.attach("ann", "bob")
    return team


def test_a_branch_that_goes_on_is_no_conflict(cloned: Team) -> None:
    cloned.run("bob", lambda: commit(cloned.workspace, "bob"))
    cloned.run("ann", lambda: commit(cloned.workspace, "ann"))
    assert [paths for _, paths in cloned.changes()] == [[".git/refs/heads/main"]] * 2
    assert cloned.found() == []


@pytest.mark.parametrize("pack", [False, True])
def test_a_branch_that_two_make_is(cloned: Team, pack: bool) -> None:
    def make(name: str) -> None:
        git(cloned.workspace, "checkout", "--quiet", "-B", "topic", "other")
        commit(cloned.workspace, name)
        if pack:
            git(cloned.workspace, "pack-refs", "--all")

    cloned.run("bob", lambda: make("bob"))
    bobs = git(cloned.workspace, "rev-parse", "topic")
    cloned.run("ann", lambda: make("ann"))
    (found,) = cloned.conflicts.list()
    assert (found.kind, found.path) == ("branch", ".git/refs/heads/topic")
    assert cloned.content(found.theirs).decode().strip() == bobs
    cloned.conflicts.resolve(found.id, "theirs")
    assert git(cloned.workspace, "rev-parse", "topic") == bobs
    assert git(cloned.workspace, "log", "-1", "--format=%s", "topic") == "bob"
    cloned.run("ann")
    assert cloned.conflicts.list() == []


def test_a_branch_whose_name_leads_out_is_none(cloned: Team, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    levels = "../" * len((cloned.workspace / ".git" / "refs" / "heads").parts)
    for agent, digit in (("bob", "1"), ("ann", "2")):
        line = f"{digit * 40} refs/heads/{levels}{str(outside)[1:]}/x\n"
        cloned.run(agent, partial(cloned.put, ".git/packed-refs", line))
    for each in cloned.conflicts.list():
        cloned.conflicts.resolve(each.id, "theirs")
    assert list(outside.iterdir()) == []
    assert cloned.found() == []


@pytest.mark.parametrize("take", ["ours", "theirs"])
def test_a_branch_that_git_has_joined_since_is_not_set_back(cloned: Team, take: str) -> None:
    def make(name: str) -> None:
        git(cloned.workspace, "checkout", "--quiet", "-B", "topic", "other")
        commit(cloned.workspace, name)

    cloned.run("bob", lambda: make("bob"))
    bobs = git(cloned.workspace, "rev-parse", "topic")
    cloned.run("ann", lambda: make("ann"))
    cloned.run("ann", lambda: git(cloned.workspace, "merge", "--quiet", "-m", "both", bobs))
    joined = git(cloned.workspace, "rev-parse", "topic")
    assert joined != bobs
    found = cloned.conflicts.list()[0]
    assert cloned.conflicts.resolve(found.id, take).taken == take
    assert git(cloned.workspace, "rev-parse", "topic") == joined


def test_a_submodule_pointer_that_two_move(cloned: Team) -> None:
    def point(digit: str) -> None:
        git(cloned.workspace, "update-index", "--add", "--cacheinfo", f"160000,{digit * 40},vendored/lib")

    cloned.run("bob", lambda: point("1"))
    cloned.run("ann", lambda: point("2"))
    (found,) = cloned.conflicts.list()
    assert (found.kind, found.path) == ("submodule", "vendored/lib/")
    assert cloned.content(found.theirs) == b"1" * 40 + b"\n"
    with pytest.raises(ConflictRefused, match="can only be set by git"):
        cloned.conflicts.resolve(found.id, "theirs")
    assert cloned.conflicts.resolve(found.id, "ours").taken == "ours"


# ---- strategies


@pytest.mark.parametrize(
    ("strategy", "taken", "content"),
    [
        ("reject", "theirs", "bob's"),
        ("last-writer-wins", "ours", "ann's"),
        ("three-way", "", "ann's"),
        ("ask", "", "ann's"),
    ],
)
def test_each_strategy(two: Team, strategy: str, taken: str, content: str) -> None:
    two.rules(("other", "ask"), ("fi*", strategy), ("*", "ask"))
    two.write("bob", "file", "bob's")
    two.write("ann", "file", "ann's")
    (found,) = two.found()
    assert (found.strategy, found.taken, two.read("file")) == (strategy, taken, content)
    assert [two.content(side) for side in (found.theirs, found.ours)] == [b"bob's", b"ann's"]
    assert two.conflicts.list() == ([] if taken else [found])


def test_rules_make_one_agent_alone_watched(team: Team) -> None:
    team.rules(("*", "ask"))
    team.write("ann", "file", "1")
    team.write("ann", "file", "2")
    assert team.changes() == [(("ann",), ["file"])] * 2


def test_what_a_person_chooses_is_told_to_the_agents(two: Team, tmp_path: Path) -> None:
    two.write("bob", "file", "bob's")
    two.write("ann", "file", "ann's")
    (found,) = two.conflicts.list()
    (tmp_path / "chosen").write_text("chosen")
    two.keep.actor = "eve"
    done = two.conflicts.resolve(found.id[:6], tmp_path / "chosen")
    assert (done.taken, two.read("file")) == ("file", "chosen")
    news = two.run("bob")
    assert news is not None
    assert news.changed == {"ann": 1, "eve": 1}
    two.write("ann", "file", "over it")
    assert [(each.agents, each.others) for each in two.conflicts.list()] == [(("ann",), ("eve",))]
    assert two.keep.replay().same
    assert two.keep.verify().ok


def test_what_cannot_be_chosen_is_refused(two: Team, tmp_path: Path) -> None:
    two.write("bob", "file", "bob's")
    two.write("ann", "file", "ann's")
    (found,) = two.conflicts.list()
    for bad in ("", "x", "0" * 13):
        with pytest.raises(ConflictNotFound):
            two.conflicts.resolve(bad, "ours")
    for path in (tmp_path / "missing", tmp_path, Path("/dev/null")):
        with pytest.raises(BadInput):
            two.conflicts.resolve(found.id, path)
    with pytest.raises(ConflictRefused, match="cannot be merged"):
        two.conflicts.resolve(found.id, "merged")
    two.conflicts.resolve(found.id, "ours")
    with pytest.raises(ConflictRefused, match="settled already"):
        two.conflicts.resolve(found.id, "theirs")
    for rule in (Rule("", "ask"), Rule("a\n", "ask"), Rule("*", "hope")):
        with pytest.raises(BadInput):
            two.conflicts.set_rules([rule])
    with pytest.raises(BadInput, match="more than 100"):
        two.conflicts.set_rules([Rule("*", "ask")] * 101)


def test_a_link_in_the_way_leads_nowhere(two: Team, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    two.put("folder/inner", "1")
    two.attach("ann", "bob")
    two.write("bob", "folder/inner", "bob's")

    def swap() -> None:
        (two.workspace / "folder" / "inner").unlink()
        (two.workspace / "folder").rmdir()
        (two.workspace / "folder").symlink_to(outside)

    two.run("ann", swap)
    (found,) = two.conflicts.list()
    with pytest.raises(ConflictRefused):
        two.conflicts.resolve(found.id, "theirs")
    assert list(outside.iterdir()) == []


def test_links_collide_by_where_they_point(two: Team) -> None:
    def point(target: str) -> None:
        (two.workspace / "link").unlink(missing_ok=True)
        (two.workspace / "link").symlink_to(target)

    two.run("bob", lambda: point("/etc/passwd"))
    two.run("ann", lambda: point("elsewhere"))
    (found,) = two.conflicts.list()
    two.conflicts.resolve(found.id, "theirs")
    assert os.readlink(two.workspace / "link") == "/etc/passwd"


def test_a_cleaned_task_keeps_only_its_record(two: Team) -> None:
    two.write("bob", "file", "bob's")
    two.write("ann", "file", "ann's")
    two.keep.log.append(f"task/{TASK}", [ev.TaskCleaned("i")], actor="eve")
    two.workspace.rename(two.keep.path / "gone")
    assert two.keep.task(TASK).state.state is TaskState.CLEANED
    with pytest.raises(ConflictRefused, match="no workspace any more"):
        two.conflicts.resolve(two.found()[0].id, "ours")
    assert (two.conflicts.list(), len(two.found()), two.keep.conflicts_of("ann")) == ([], 1, [])
    with two.keep.projections.reading() as state:
        assert {key.split(b"/")[1] for key, _ in state.scan(b"conflicts/")} == {b"all"}
