"""Publishing a task's commits: they come into the source as a branch, whatever the workspace's repository says."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from sandkeep.events import BadInput
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Task, publishing, workspace
from sandkeep.sandboxes.errors import NotARepository, PublishRefused, TaskRefused

from .support import Cli, git, make_repository, types


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The user's repository."""
    return make_repository(tmp_path / "source")


@pytest.fixture
def worked(keep: Keep, source: Path) -> Task:
    """A task with a commit of its own. Git runs in its workspace as in its sandbox."""
    task = keep.create_task("Fix: the Parser!", source=source)
    commit(task, "parser.py", "fixed\n")
    return task


def commit(task: Task, name: str, text: str) -> str:
    """Commit a file in a task's workspace, and return the commit."""
    (task.workspace / name).write_text(text)
    trust = ("-c", "safe.directory=*")
    git(task.workspace, *trust, "add", name)
    git(task.workspace, *trust, "commit", "--quiet", f"--message={name}")
    return git(task.workspace, *trust, "rev-parse", "HEAD")


def state(repository: Path) -> tuple[str, ...]:
    """What is checked out in a repository, and what is not committed."""
    return (
        git(repository, "rev-parse", "HEAD"),
        git(repository, "symbolic-ref", "HEAD"),
        git(repository, "status", "-s"),
    )


def test_commits_become_a_branch_and_nothing_that_is_checked_out_changes(
    keep: Keep, source: Path, worked: Task
) -> None:
    (source / "README").write_text("mine, not committed\n")
    before = state(source)
    (worked.workspace / "README").write_text("theirs, not committed\n")
    (worked.workspace / "new").write_text("")
    done = publishing.publish(keep, worked.id)
    assert done.branch == f"sandkeep/fix-the-parser-{worked.id[:6]}"
    assert git(source, "rev-parse", done.branch) == done.commit
    assert git(source, "show", f"{done.branch}:parser.py") == "fixed"
    assert git(source, "fsck", "--strict") == ""
    assert set(done.uncommitted) == {"README", "new"}
    assert state(source) == before
    assert (source / "README").read_text() == "mine, not committed\n"
    last = list(worked.history())[-1].event
    assert last == ev.CommitsPublished(str(source), done.branch, done.commit, "")


def test_a_branch_goes_forward_only(keep: Keep, source: Path, worked: Task) -> None:
    first = publishing.publish(keep, worked.id, "topic")
    assert publishing.publish(keep, worked.id, "topic").before == first.commit
    second = commit(worked, "more.py", "more\n")
    assert publishing.publish(keep, worked.id, "topic").commit == second
    git(source, "branch", "--force", "topic", "main")
    git(source, "checkout", "--quiet", "topic")
    (source / "other").write_text("x")
    git(source, "add", "other")
    git(source, "commit", "--quiet", "--message=other")
    events = keep.head().position
    with pytest.raises(PublishRefused, match="checked out"):
        publishing.publish(keep, worked.id, "topic")
    git(source, "checkout", "--quiet", "main")
    with pytest.raises(PublishRefused, match="commits that the task has not"):
        publishing.publish(keep, worked.id, "topic")
    assert keep.head().position == events


def test_what_git_has_packed_is_published_too(keep: Keep, source: Path, worked: Task) -> None:
    git(worked.workspace, "-c", "safe.directory=*", "gc", "--quiet", "--prune=now")
    for index in (worked.workspace / ".git" / "objects" / "pack").glob("*.idx"):
        index.chmod(0o644)
        index.write_bytes(b"\xfftOc" + b"\xff" * 100)  # nobody has to believe it
    done = publishing.publish(keep, worked.id)
    assert git(source, "show", f"{done.branch}:parser.py") == "fixed"


def test_a_shallow_source_takes_commits(keep: Keep, source: Path, tmp_path: Path) -> None:
    for number in range(3):
        git(source, "commit", "--quiet", "--allow-empty", f"--message={number}")
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{source}", "shallow")
    task = keep.create_task("a task", source=tmp_path / "shallow")
    commit(task, "x", "x\n")
    done = publishing.publish(keep, task.id)
    assert git(tmp_path / "shallow", "show", f"{done.branch}:x") == "x"


def test_nothing_in_a_hostile_repository_is_run(keep: Keep, source: Path, worked: Task, tmp_path: Path) -> None:
    run = tmp_path / "run"
    evil = f"touch {run}; "
    repository = worked.workspace / ".git"
    keys = ["core.fsmonitor", "uploadpack.packObjectsHook", "core.sshCommand", "core.alternateRefsCommand"]
    keys += ["filter.evil.clean", "filter.evil.smudge", "diff.external", "core.pager", "gpg.program", "core.hooksPath"]
    for key in keys:
        git(worked.workspace, "-c", "safe.directory=*", "config", key, evil)
    git(worked.workspace, "-c", "safe.directory=*", "config", "remote.origin.url", f"ext::sh -c '{evil}'")
    git(worked.workspace, "-c", "safe.directory=*", "config", "remote.origin.promisor", "true")
    (worked.workspace / ".gitattributes").write_text("* filter=evil diff=evil\n")
    for folder in (repository / "hooks", source / ".git" / "hooks"):
        folder.mkdir(exist_ok=True)
        for name in ("post-checkout", "reference-transaction", "pre-auto-gc", "post-index-change"):
            (folder / name).write_text(f"#!/bin/sh\n{evil}\n")
            (folder / name).chmod(0o755)
    os.mkfifo(repository / "objects" / "aa" if not (repository / "objects" / "aa").exists() else repository / "pipe")
    (repository / "objects" / "ab").mkdir(exist_ok=True)
    os.mkfifo(repository / "objects" / "ab" / ("0" * 38))
    done = publishing.publish(keep, worked.id)
    assert git(source, "show", f"{done.branch}:parser.py") == "fixed"
    assert ".gitattributes" in done.uncommitted
    assert not run.exists()


def test_no_other_repository_is_read(keep: Keep, source: Path, tmp_path: Path) -> None:
    secret = make_repository(tmp_path / "secret")
    (secret / "password").write_text("sesame\n")
    git(secret, "add", "password")
    git(secret, "commit", "--quiet", "--message=secret")
    commit_id = git(secret, "rev-parse", "HEAD")
    lending = keep.create_task("borrows objects", source=source)
    (lending.workspace / ".git" / "objects" / "info").mkdir(exist_ok=True)
    (lending.workspace / ".git" / "objects" / "info" / "alternates").write_text(f"{secret}/.git/objects\n")
    (lending.workspace / ".git" / "HEAD").write_text(commit_id + "\n")
    linked = keep.create_task("is another repository", source=source)
    (linked.workspace / ".git").rename(linked.workspace / "was")
    (linked.workspace / ".git").symlink_to(secret / ".git")
    pointing = keep.create_task("points to another", source=source)
    (pointing.workspace / ".git").rename(pointing.workspace / "was")
    (pointing.workspace / ".git").write_text(f"gitdir: {secret}/.git\n")
    branches = git(source, "branch", "--all")
    for task in (lending, linked, pointing):
        with pytest.raises(PublishRefused):
            publishing.publish(keep, task.id)
        assert "CommitsPublished" not in types(task.history())
    assert git(source, "branch", "--all") == branches
    assert subprocess.run(["git", "cat-file", "-e", commit_id], cwd=source, check=False, stderr=-3).returncode != 0


def test_a_commit_that_would_trip_git_is_not_taken(keep: Keep, source: Path, worked: Task) -> None:
    trust = ("-c", "safe.directory=*")
    blob = bytes.fromhex(git(worked.workspace, *trust, "rev-parse", "HEAD:README"))
    tree = subprocess.run(
        ["git", *trust, "hash-object", "-t", "tree", "-w", "--stdin", "--literally"],
        input=b"100644 .git\0" + blob,
        cwd=worked.workspace,
        capture_output=True,
        check=True,
    ).stdout.decode()
    made = git(worked.workspace, *trust, "commit-tree", tree.strip(), "-m", "evil")
    git(worked.workspace, *trust, "update-ref", "HEAD", made)
    with pytest.raises(PublishRefused, match="did not take"):
        publishing.publish(keep, worked.id)
    assert "sandkeep" not in git(source, "branch", "--all")


def test_what_cannot_be_published_is_refused(keep: Keep, source: Path, worked: Task) -> None:
    with pytest.raises(BadInput, match="from no repository"):
        publishing.publish(keep, keep.create_task("without a source").id)
    for name in ("a..b", "-x", "x.lock", "a b", "../../config"):
        with pytest.raises(BadInput, match="branch's name"):
            publishing.publish(keep, worked.id, name)
    empty = make_repository(source.parent / "empty")
    git(empty, "checkout", "--quiet", "--orphan", "fresh")
    fresh = keep.create_task("no commit", source=empty)
    (fresh.workspace / ".git" / "HEAD").write_text("ref: refs/heads/nothing\n")
    with pytest.raises(PublishRefused, match="no commit"):
        publishing.publish(keep, fresh.id)
    source.rename(source.with_name("gone"))
    with pytest.raises(NotARepository):
        publishing.publish(keep, worked.id)


def test_what_root_makes_in_a_repository_is_its_owners(keep: Keep) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the owner of the repository gets to it
        source = make_repository(Path(folder) / "source")
        workspace.give(source)
        task = keep.create_task("a task", source=source)
        commit(task, "x", "x\n")
        done = publishing.publish(keep, task.id)
        made = [source / ".git" / "refs" / "heads" / done.branch, *(source / ".git" / "objects").rglob("*")]
        assert {path.stat().st_uid for path in made} == {workspace.owner()[0]}


def test_root_does_nothing_in_what_another_user_can_write_to(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        source, stolen, ran = make_repository(Path(folder) / "source"), Path(folder) / "stolen", Path(folder) / "ran"
        workspace.give(source)
        stolen.mkdir()
        task = keep.create_task("a task", source=source)
        commit(task, "x", "x\n")
        git(task.workspace, "-c", "safe.directory=*", "gc", "--quiet", "--prune=now")
        fetch, uid = publishing._fetch, workspace.owner()[0]
        attack = (
            'cd "$1"; rm -rf objects/pack; ln -s "$2" objects/pack; echo "* filter=evil" > info/attributes;'
            ' git config --file config filter.evil.clean "touch $3; cat"'
        )
        seen: list[str] = []

        def attacked(source: Path, scratch: Path, branch: str) -> str:
            said = fetch(source, scratch, branch)
            words = ("sh", "-c", attack, "sh", str(scratch), str(stolen), str(ran))
            subprocess.run(words, user=uid, check=False, stderr=subprocess.DEVNULL)
            seen.append(said)
            return said

        monkeypatch.setattr(publishing, "_fetch", attacked)
        done = publishing.publish(keep, task.id)
        assert len(seen) == 2
        assert git(source, "-c", "safe.directory=*", "show", f"{done.branch}:x") == "x"
        assert list(stolen.iterdir()) == []
        assert not ran.exists()


def test_no_file_is_read_that_a_source_points_to(source: Path) -> None:
    shallow, word = source / ".git" / "shallow", source / "word"
    word.write_text("0" * 40 + "\n")
    shallow.symlink_to(word)
    with publishing._scratch(source) as scratch:
        assert not (scratch / "shallow").exists()
    shallow.unlink()
    shallow.write_text("no commit\n")
    with publishing._scratch(source) as scratch:
        assert not (scratch / "shallow").exists()


def test_no_more_is_read_than_there_is_room_for(
    keep: Keep, source: Path, worked: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = worked.workspace / ".git" / "objects"
    for huge in (objects / "ac" / ("0" * 38), objects / "pack" / f"pack-{'0' * 40}.pack"):
        huge.parent.mkdir(exist_ok=True)
        huge.touch()
        os.truncate(huge, 1 << 42)
        with pytest.raises(PublishRefused, match="more than the"):
            publishing.publish(keep, worked.id)
        huge.unlink()
        git(worked.workspace, "-c", "safe.directory=*", "gc", "--quiet", "--prune=now")
    monkeypatch.setattr(publishing, "MOST_BYTES", 2 * publishing._BLOCK)
    for name in ("b", "c"):
        commit(worked, name, name)
    with pytest.raises(PublishRefused, match="more than the 8192 bytes"):
        publishing.publish(keep, worked.id)
    assert "sandkeep" not in git(source, "branch", "--all")


def test_git_takes_no_more_time_memory_and_space_than_it_is_given(tmp_path: Path) -> None:
    shows = ("-c", "alias.shows=!ulimit -v; ulimit -f; ulimit -t", "shows")
    done = workspace.git(*shows, source=tmp_path, limits=workspace.Limits(7, 1 << 30, 1 << 20))
    assert done.stdout.split() == [str(1 << 20), str(1 << 11), "7"]
    with pytest.raises(subprocess.TimeoutExpired):
        workspace.git(
            "-c",
            "alias.hangs=!exec sleep 60 >&- 2>&-",
            "hangs",
            source=tmp_path,
            limits=workspace.Limits(1, 1 << 30, 1),
        )


def test_a_branch_stays_where_it_is_if_git_takes_too_long(
    keep: Keep, source: Path, worked: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(worked.workspace / "parser.py", 1 << 40)  # hashed, as it is in the commit
    monkeypatch.setattr(publishing, "_GIT_SECONDS", 1)
    with pytest.raises(PublishRefused, match="more than 1 s"):
        publishing.publish(keep, worked.id)
    assert "sandkeep" not in git(source, "branch", "--all")
    assert "CommitsPublished" not in types(worked.history())


def test_the_verb_says_what_is_not_in_the_branch(keep: Keep, worked: Task, cli: Cli) -> None:
    (worked.workspace / "left").write_text("")
    keep.close()
    answer = cli("publish-task", worked.id, "--branch", "topic")
    assert answer.status == 0
    assert answer.stdout.decode().splitlines()[1:] == [
        "not committed, and so not in it: 1 paths of the workspace",
        "  left",
    ]
    assert cli("publish-task", worked.id, "--json").json["uncommitted"] == ["left"]


def test_a_task_that_was_cleaned_up_has_nothing_to_publish(keep: Keep, worked: Task) -> None:
    worked.complete()
    publishing.publish(keep, worked.id)
    worked.clean_up()
    with pytest.raises((TaskRefused, Exception), match="workspace"):
        publishing.publish(keep, worked.id)
