"""Workspaces are clones of sources that may be hostile, and lie where paths cannot lead out of them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandkeep.sandboxes import workspace
from sandkeep.sandboxes.errors import NotARepository, OutsideWorkspace

from .support import git, listing


def clone(source: Path, tmp_path: Path) -> tuple[Path, str | None]:
    """Clone as a task does, after the same check."""
    target = tmp_path / "task" / "workspace"
    return target, workspace.prepare(target, workspace.check_source(source))


@pytest.fixture
def pit(tmp_path: Path) -> Iterator[Path]:
    """A folder for trees that are too deep for what pytest clears its own folders away with."""
    folder = tmp_path / "pit"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", "--", folder], check=True)


def contents(folder: Path) -> dict[bytes, object]:
    """The files of a working tree with what is in them, without git's own."""
    return {name: entry[-1] for name, entry in listing(folder).items() if name.split(b"/")[0] != b".git" and entry[-1]}


# ---- what may be a source


def test_a_clone_has_the_files_and_the_commit_of_its_source(source: Path, tmp_path: Path) -> None:
    target, commit = clone(source, tmp_path)
    assert commit == git(source, "rev-parse", "HEAD")
    assert contents(target) == contents(source)
    assert (target / "run").stat().st_mode & 0o111
    git(target, "-c", "safe.directory=*", "fsck", "--strict")


def test_a_bare_repository_can_be_a_source(repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), "bare")
    target, commit = clone(tmp_path / "bare", tmp_path)
    assert commit == git(repository, "rev-parse", "HEAD")
    assert contents(target) == contents(repository)


def test_a_shallow_repository_can_be_a_source(source: Path, tmp_path: Path) -> None:
    git(source, "commit", "--quiet", "--allow-empty", "--message=second")
    git(tmp_path, "clone", "--quiet", "--depth=1", source.as_uri(), "shallow")
    target, commit = clone(tmp_path / "shallow", tmp_path)
    assert commit == git(source, "rev-parse", "HEAD")
    assert contents(target) == contents(source)


def test_a_repository_without_commits_makes_an_empty_workspace(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "empty")
    target, commit = clone(tmp_path / "empty", tmp_path)
    assert commit is None
    assert os.listdir(target) == [".git"]


def test_a_detached_head_is_what_is_checked_out(source: Path, tmp_path: Path) -> None:
    first = git(source, "rev-parse", "HEAD")
    git(source, "commit", "--quiet", "--allow-empty", "--message=second")
    git(source, "checkout", "--quiet", first)
    assert clone(source, tmp_path)[1] == first


def test_a_linked_working_tree_can_be_a_source(source: Path, tmp_path: Path) -> None:
    git(source, "worktree", "add", "--quiet", str(tmp_path / "linked"))
    target, commit = clone(tmp_path / "linked", tmp_path)
    assert commit == git(source, "rev-parse", "HEAD")
    assert contents(target) == contents(source)


@pytest.mark.parametrize("bare", [False, True], ids=["with working tree", "bare"])
def test_the_source_may_belong_to_somebody_else(
    source: Path, tmp_path: Path, bare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bare:
        git(tmp_path, "clone", "--quiet", "--bare", str(source), "bare")
        source = tmp_path / "bare"
    # git's own way to believe this, which all of its processes have to be told; not everybody can give files away.
    shim = tmp_path / "bin" / "git"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec {shutil.which("git")} "$@"\n')
    shim.chmod(0o755)
    commit = git(source, "rev-parse", "HEAD")
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    with pytest.raises(AssertionError, match="dubious ownership"):
        git(source, "status")
    assert clone(source, tmp_path)[1] == commit


def test_a_very_deep_tree_can_be_cloned_and_removed(pit: Path) -> None:
    git(pit, "init", "--quiet", "deep")
    inner = "d/" * 1500
    commands = f"commit refs/heads/main\ncommitter a <a> 0 +0000\ndata 0\nM 644 inline {inner}f\ndata 1\nx\n\n"
    subprocess.run(["git", "-C", pit / "deep", "fast-import", "--quiet"], input=commands.encode(), check=True)
    git(pit / "deep", "symbolic-ref", "HEAD", "refs/heads/main")
    target, _ = clone(pit / "deep", pit)
    assert (target / inner / "f").stat().st_uid == workspace.owner()[0]
    workspace.remove(target)
    assert not target.exists()


@pytest.mark.parametrize("name", ["-dash", "col:on", "new\nline", "ünïcode", "a b", "'quote", "$(touch pwned)"])
def test_the_name_of_the_source_is_only_a_name(
    source: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target, _ = clone(source.rename(tmp_path / name), tmp_path)
    assert (target / "README").read_text() == "hello\n"
    assert not list(tmp_path.rglob("pwned"))


def test_a_folder_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotARepository, match="is no git repository"):
        workspace.check_source(tmp_path)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotARepository, match="is no folder"):
        workspace.check_source(tmp_path / name)


def test_a_folder_inside_a_repository_is_refused_and_its_top_named(source: Path) -> None:
    (source / "deep" / "er").mkdir(parents=True)
    with pytest.raises(NotARepository) as refused:
        workspace.check_source(source / "deep" / "er")
    assert f"lies inside the git repository {source};" in str(refused.value)


def test_a_source_that_cannot_be_read_to_its_end_says_so(source: Path, tmp_path: Path) -> None:
    tree = git(source, "rev-parse", "HEAD:src")
    (source / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    with pytest.raises(NotARepository, match="cannot be cloned"):
        clone(source, tmp_path)


# ---- what stays behind


def test_uncommitted_changes_are_not_carried_and_the_source_is_not_touched(source: Path, tmp_path: Path) -> None:
    (source / "README").write_text("changed\n")
    (source / "untracked").write_text("mine\n")
    (source / "src" / "main.py").unlink()
    git(source, "add", "README")
    before = listing(source)
    target, _ = clone(source, tmp_path)
    assert listing(source) == before
    assert (target / "README").read_text() == "hello\n"
    assert (target / "src" / "main.py").exists()
    assert not (target / "untracked").exists()


def test_no_file_is_shared_with_the_source(source: Path, tmp_path: Path) -> None:
    target, _ = clone(source, tmp_path)
    assert all(path.stat().st_nlink == 1 for path in target.rglob("*") if path.is_file())


def test_a_clone_needs_nothing_of_a_repository_that_its_source_borrows_from(source: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--shared", str(source), "borrower")
    target, _ = clone(tmp_path / "borrower", tmp_path)
    shutil.rmtree(source)
    shutil.rmtree(tmp_path / "borrower")
    git(target, "-c", "safe.directory=*", "fsck", "--strict")
    assert not (target / ".git" / "objects" / "info" / "alternates").exists()


def test_files_hidden_among_the_objects_are_not_carried(source: Path, tmp_path: Path) -> None:
    objects = source / ".git" / "objects"
    (objects / "secret").write_text("private")
    (objects / "ff").mkdir(exist_ok=True)
    (objects / "ff" / "link").symlink_to("/etc/passwd")
    target, _ = clone(source, tmp_path)
    assert not (target / ".git" / "objects" / "secret").exists()
    assert not [path for path in target.rglob("*") if path.is_symlink()]


def test_hooks_and_configuration_are_not_carried(source: Path, tmp_path: Path) -> None:
    (source / ".git" / "hooks").mkdir(exist_ok=True)
    (source / ".git" / "hooks" / "pre-commit").write_text("#!/bin/sh\n")
    git(source, "config", "user.password", "hunter2")
    target, _ = clone(source, tmp_path)
    assert not (target / ".git" / "hooks").exists()
    assert "hunter2" not in (target / ".git" / "config").read_text()


# ---- nothing of the source runs


def script(path: Path, proof: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho $0 >>'{proof}'\nexit 0\n")
    path.chmod(0o755)
    return path


def test_no_hook_filter_or_configured_program_of_the_source_runs(source: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    evil = script(tmp_path / "evil", proof)
    names = "post-checkout post-merge pre-receive reference-transaction post-index-change pre-auto-gc upload-pack"
    for name in names.split():
        script(source / ".git" / "hooks" / name, proof)
    (source / ".gitattributes").write_text("* filter=evil diff=evil merge=evil ident text\n")
    git(source, "add", ".gitattributes")
    git(source, "commit", "--quiet", "--no-verify", "--message=attributes")
    proof.unlink(missing_ok=True)
    programs = "core.fsmonitor core.sshCommand core.gitProxy core.editor core.pager core.askPass gpg.program"
    programs += " uploadpack.packObjectsHook filter.evil.smudge filter.evil.clean filter.evil.process diff.external"
    programs += " credential.helper core.alternateRefsCommand trace2.eventTarget diff.evil.textconv"
    for name in programs.split():
        with open(source / ".git" / "config", "a") as file:
            section, _, key = name.rpartition(".")
            head, _, tail = section.partition(".")
            file.write(f'[{head} "{tail}"]\n' if tail else f"[{head}]\n")
            file.write(f"\t{key} = {evil}\n")
    target, _ = clone(source, tmp_path)
    assert (target / "README").read_text() == "hello\n"
    assert not proof.exists()


def test_the_users_own_configuration_does_not_apply(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = tmp_path / "proof"
    home = tmp_path / "home"
    script(home / "post-checkout", proof)
    template = tmp_path / "template"
    template.mkdir()
    script(template / "hooks" / "post-checkout", proof)
    (home / ".gitconfig").write_text(f"[core]\n\thooksPath = {home}\n[init]\n\ttemplateDir = {template}\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(template))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.hooksPath")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(home))
    target = tmp_path / "task" / "workspace"
    assert workspace.prepare(target, workspace.check_source(source)) is not None
    assert not proof.exists()
    assert not (target / ".git" / "hooks").exists()


def test_submodules_are_not_fetched(source: Path, repository: Path, tmp_path: Path) -> None:
    git(source, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(repository), "module")
    git(source, "config", "submodule.recurse", "true")
    git(source, "commit", "--quiet", "--message=module")
    target, _ = clone(source, tmp_path)
    assert list((target / "module").iterdir()) == []
    assert not (target / ".git" / "modules").exists()


# ---- owners and removal


def test_all_of_a_workspace_belongs_to_who_runs_commands(source: Path, tmp_path: Path) -> None:
    (source / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").touch()
    git(source, "add", "link")
    git(source, "commit", "--quiet", "--message=link")
    target, _ = clone(source, tmp_path)
    owners = {entry[1:3] for entry in listing(target).values()} | {(target.stat().st_uid, target.stat().st_gid)}
    assert owners == {workspace.owner()}
    assert workspace.owner()[0] != 0
    assert (tmp_path / "outside").stat().st_uid == os.getuid()


def test_removing_a_workspace_removes_nothing_that_its_links_point_to(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    mode = stat.S_IMODE(outside.stat().st_mode)
    target = tmp_path / "workspace"
    workspace.prepare(target, None)
    (target / "link").symlink_to(outside)
    workspace.remove(target)
    assert not target.exists()
    assert (outside / "file").exists()
    assert stat.S_IMODE(outside.stat().st_mode) == mode
    workspace.remove(target)


def test_a_folder_that_becomes_a_link_while_it_is_removed_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, root = tmp_path / "outside", tmp_path / "workspace"
    outside.mkdir()
    outside.chmod(0o711)
    (root / "folder" / "inner").mkdir(parents=True)
    really = os.stat

    def swapping(path: str, **options: Any) -> os.stat_result:
        found = really(path, **options)
        if path == "inner" and stat.S_ISDIR(found.st_mode):
            (root / "folder" / "inner").rmdir()
            (root / "folder" / "inner").symlink_to(outside)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", swapping)
        with pytest.raises(NotADirectoryError):
            workspace.remove(root)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o711
    workspace.remove(root)
    assert not root.exists()


def test_a_workspace_that_was_locked_from_inside_is_removed(unprivileged: Path) -> None:
    target = unprivileged / "workspace"
    workspace.prepare(target, None)
    (target / "locked" / "in" / "deeper").mkdir(parents=True)
    (target / "locked" / "in" / "file").touch()
    for name, mode in {"locked/in/deeper": 0o000, "locked/in": 0o000, "locked": 0o500, ".": 0o000}.items():
        (target / name).chmod(mode)
    workspace.remove(target)
    assert not target.exists()


def test_removing_a_workspace_has_no_limit_of_depth(pit: Path) -> None:
    target = pit / "workspace"
    workspace.prepare(target, None)
    there = os.open(target, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=there)
        below = os.open("d", os.O_RDONLY, dir_fd=there)
        os.close(there)
        there = below
    os.close(there)
    workspace.remove(target)
    assert not target.exists()


# ---- paths


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", "/workspace"),
        (".", "/workspace"),
        ("a/b", "/workspace/a/b"),
        ("a/../b", "/workspace/b"),
        ("../workspace/a", "/workspace/a"),
        ("/workspace", "/workspace"),
        ("/workspace/a", "/workspace/a"),
        ("//workspace//a/", "/workspace/a"),
        ("...", "/workspace/..."),
    ],
)
def test_a_path_inside_the_workspace_is_made_absolute(path: str, found: str) -> None:
    assert str(workspace.inside(path)) == found


@pytest.mark.parametrize(
    "path", ["..", "a/../..", "/", "/etc", "/workspaces", "../workspace2", "/workspace/../memory", "a\0b", "/../etc"]
)
def test_a_path_that_leads_out_is_refused(path: str) -> None:
    with pytest.raises(OutsideWorkspace, match="leads out of the workspace"):
        workspace.inside(path)
