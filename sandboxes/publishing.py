"""A task's commits, brought into the repository that it was cloned from, as a branch; never into a working tree.

The workspace's repository is hostile: its configuration, hooks, alternates and remotes could make git run or read
anything. So git is never run in it. What is taken from it is data: the commit that HEAD leads to, and its objects, read
through descriptors into a repository of ours that has nothing else. From there they are fetched by the user's, with
git's own checks of what it is sent: objects are what they are called, and hold none of the names that git trips over.
How much is read is bounded, and so is what git may take for it: time, memory, and the size of what it writes.

Where root publishes into another user's repository, that user fetches, from a copy which is theirs. In our own
repository nobody else can write, so that root writes where it means to, and runs git with a configuration of its own.

The branch is only moved forward. No hook runs. Fetching again changes nothing, so what a crash leaves is put right by
running it again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sandkeep.events import BadInput
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import decider, recording, refs, workspace
from sandkeep.sandboxes.errors import PublishRefused
from sandkeep.sandboxes.text import quiet

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

PREFIX = "sandkeep/"
"""What the names of branches begin with that nobody has named."""

MOST_PATHS = 1000
"""How many paths that are not committed are told."""

MOST_BYTES = 8 << 30
"""How much is read of a workspace's repository; never more than half of what is free where it is copied to."""

_GIT_SECONDS, _GIT_BYTES = 600, 8 << 30
_BLOCK = 4096  # what the smallest file takes
_REF = "refs/heads/published"
_SHARD = re.compile(rb"[0-9a-f]{2}")
_LOOSE = re.compile(rb"[0-9a-f]{38}|[0-9a-f]{62}")
_SHALLOW = re.compile(rb"[0-9a-f\n]*")
_PACK = re.compile(rb"pack-[0-9a-f]{40,64}\.pack")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_SLUG = 40
_MOST_SHALLOW = 1 << 24
_SERVE = "git -c 'safe.directory=*' upload-pack"
_NEVER = ("--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--no-recurse-submodules")


class Published(msgspec.Struct, frozen=True):
    """A branch of the `repository` that has the task's commits up to `commit`; `before` is where it was, empty if it is
    new. `uncommitted` are paths of the workspace that differ from that commit: they are not in the branch."""

    task: str
    repository: str
    branch: str
    commit: str
    before: str
    uncommitted: tuple[str, ...]


def publish(
    keep: Keep,
    task_id: str,
    branch: str | None = None,
    *,
    fence: int | None = None,
    progress: Callable[[str], None] = quiet,
) -> Published:
    """Bring what a task has committed into the repository that it was cloned from, as `branch`; by default one that
    is called after the task. What is checked out anywhere is not touched.

    Raises `BadInput`, `NotARepository` if the source is none any more, and `PublishRefused`; as `Keep.task` does; and
    `TaskRefused` once the task has been cleaned up. Then the repository's branches are as before.
    """
    task = keep.task(task_id, fence)
    state = task.state
    if state.source is None:
        raise BadInput(f"task {task.id} was made from no repository; create it with --source, or copy its workspace")
    source = workspace.check_source(Path(state.source))
    name = branch or f"{PREFIX}{_slug(state.title)}-{task.id[:6]}"
    if _source(source, "check-ref-format", f"refs/heads/{name}").returncode != 0 or name.startswith("-"):
        raise BadInput(f"{name[:80]!r} cannot be a branch's name; see git-check-ref-format(1)")
    with keep.working(task.id), recording.opened(task.workspace, task.id) as root, _scratch(source) as scratch:
        commit, budget = _head(root), _Budget(scratch)
        progress("reading commits")
        _copy_loose(root, scratch, budget)
        (scratch / _REF).parent.mkdir(parents=True, exist_ok=True)
        (scratch / _REF).write_text(commit + "\n")
        before = _commit_of(source, name)
        # What can go on for too long comes before the branch is moved.
        progress("looking for what is not committed")
        uncommitted = _uncommitted(scratch, task.workspace)
        failed = _fetch(source, scratch, name)
        if failed and not _refused(failed):
            progress("reading packs")
            _copy_packs(root, scratch, budget)
            uncommitted = _uncommitted(scratch, task.workspace)
            failed = _fetch(source, scratch, name)
        if failed:
            raise PublishRefused(_words(name, source, failed))
    event = ev.CommitsPublished(os.fspath(source), name, commit, before)
    keep.decide(task.id, partial(decider.record, event=event))
    return Published(task.id, os.fspath(source), name, commit, before, uncommitted)


def _slug(title: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", title.lower())[:_MAX_SLUG].strip("-")
    return words or "task"


def _head(root: int) -> str:
    """The commit that is checked out in the workspace."""
    found = refs.head(root)
    if found is None:
        raise PublishRefused("the workspace has no commit that can be read; commit in the sandbox first")
    return found.decode()


class _Budget:
    """How many bytes may still be read of a workspace's repository into the folder that `scratch` lies in."""

    def __init__(self, scratch: Path) -> None:
        self.most = self._left = min(MOST_BYTES, shutil.disk_usage(scratch).free // 2)

    def take(self, size: int) -> None:
        """Take what a file of `size` needs. Raises `PublishRefused`."""
        self._left -= max(size, _BLOCK)
        if self._left < 0:
            raise PublishRefused(
                f"the workspace's repository holds more than the {self.most} bytes that can be read of it;"
                " 'git gc' in the sandbox makes it smaller"
            )


@contextlib.contextmanager
def _scratch(source: Path) -> Iterator[Path]:
    """A repository of ours that has the objects of `source` to begin with."""
    with tempfile.TemporaryDirectory(prefix="sandkeep-publish-") as folder:
        scratch = Path(folder) / "scratch.git"
        length = _output(source, "rev-parse", "--show-object-format")
        _git(Path(folder), "init", "--quiet", "--bare", "--template=", f"--object-format={length}", os.fspath(scratch))
        objects = source / _output(source, "rev-parse", "--git-path", "objects")
        (scratch / "objects" / "info").mkdir(exist_ok=True)
        (scratch / "objects" / "info" / "alternates").write_bytes(os.fsencode(objects.resolve()) + b"\n")
        shallow = source / _output(source, "rev-parse", "--git-path", "shallow")
        with contextlib.suppress(OSError), open(os.open(shallow, _FILE), "rb") as file:
            # The owner may have made this a way to a file that is not theirs to read.
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode) and _SHALLOW.fullmatch(found := file.read(_MOST_SHALLOW)):
                (scratch / "shallow").write_bytes(found)
        yield scratch


def _copy_loose(root: int, scratch: Path, budget: _Budget) -> None:
    for shard in _names(root, b".git", b"objects"):
        if _SHARD.fullmatch(shard):
            for name in _names(root, b".git", b"objects", shard):
                if _LOOSE.fullmatch(name):
                    target = scratch / "objects" / os.fsdecode(shard)
                    target.mkdir(exist_ok=True)
                    _copy(root, (b".git", b"objects", shard, name), target / os.fsdecode(name), budget)


def _copy_packs(root: int, scratch: Path, budget: _Budget) -> None:
    """Copy packs, and make their indexes anew: git believes an index."""
    target = scratch / "objects" / "pack"
    target.mkdir(exist_ok=True)
    for name in _names(root, b".git", b"objects", b"pack"):
        path = target / os.fsdecode(name)
        if _PACK.fullmatch(name) and _copy(root, (b".git", b"objects", b"pack", name), path, budget):
            done = _bounded(scratch, "index-pack", os.fspath(path))
            if done.returncode != 0:
                path.unlink()


def _names(root: int, *path: bytes) -> list[bytes]:
    try:
        folder = workspace.descend(root, path)
    except OSError:
        return []
    try:
        return sorted(map(os.fsencode, os.listdir(folder)))
    finally:
        os.close(folder)


def _copy(root: int, path: tuple[bytes, ...], target: Path, budget: _Budget) -> bool:
    """Copy a regular file; what is none is not there."""
    try:
        folder = workspace.descend(root, path[:-1])
        try:
            descriptor = os.open(path[-1], _FILE, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError:
        return False
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return False
        budget.take(found.st_size)
        with target.open("wb") as copy:
            left = found.st_size  # what is added while it is copied is not counted, and so not copied
            while left > 0 and (data := file.read(min(left, 1 << 20))):
                left -= len(data)
                copy.write(data)
    return True


def _owner(source: Path) -> tuple[int, int] | None:
    """Whose the repository is, if it is another's and we may act as them: what we make in it is to be theirs."""
    found = source.stat()
    return (found.st_uid, found.st_gid) if os.geteuid() == 0 and found.st_uid != 0 else None


@contextlib.contextmanager
def _given(scratch: Path, owner: tuple[int, int] | None) -> Iterator[Path]:
    """The repository for the one who fetches from it: a copy, which is the `owner`'s, if there is another.

    We do nothing more in what has been given away; the folder that it lies in stays ours."""
    if owner is None:
        yield scratch
        return
    with tempfile.TemporaryDirectory(prefix="sandkeep-publish-") as folder:
        given = Path(folder) / scratch.name
        shutil.copytree(scratch, given, symlinks=True)
        given.chmod(stat.S_IRWXU)
        subprocess.run(("chown", "-hR", f"{owner[0]}:{owner[1]}", "--", os.fspath(given)), check=True)
        Path(folder).chmod(0o711)
        yield given


def _fetch(source: Path, scratch: Path, branch: str) -> str:
    """Fetch the commit as `branch`; returns what git said if it did not."""
    # Two of these the repository's own configuration may say; the first would run a command.
    checks = ("-c", "core.alternateRefsCommand=true", "-c", "fetch.fsckObjects=true")
    spec = f"{_REF}:refs/heads/{branch}"
    serve, owner = f"--upload-pack={_SERVE}", _owner(source)
    with _given(scratch, owner) as given:
        command = (*checks, "fetch", *_NEVER, serve, "--", os.fspath(given), spec)
        done = _bounded(source, *command, owner=owner)
    return "" if done.returncode == 0 else done.stderr.strip() or "git said nothing"


def _refused(said: str) -> bool:
    """Whether git had what it needs, and would not move the branch."""
    return "rejected" in said or "refusing to fetch" in said or "cannot lock ref" in said


def _words(branch: str, source: Path, said: str) -> str:
    last = said.splitlines()[-1]
    if "refusing to fetch" in said:
        return f"the branch {branch!r} is checked out in {source}, which is not touched; name another with --branch"
    if "rejected" in said:
        return f"the branch {branch!r} of {source} has commits that the task has not; name another with --branch"
    return f"{source} did not take the task's commits: {last}; see what 'git fsck' says in the workspace"


def _uncommitted(scratch: Path, folder: Path) -> tuple[str, ...]:
    """The paths of a workspace that are not as committed. Only our repository's configuration is read."""
    where = ("--git-dir", os.fspath(scratch), "--work-tree", os.fspath(folder), "-c", "core.bare=false")
    if _bounded(folder, *where, "read-tree", _REF).returncode != 0:
        return ()  # not all of the commit is there: it may be in packs, or cannot be fetched either
    status = ("status", "--porcelain", "-z", "--no-renames", "--ignore-submodules=all", "--untracked-files=normal")
    _git(folder, *where, "symbolic-ref", "HEAD", _REF)
    done = _bounded(folder, *where, *status)
    if done.returncode != 0:
        said = [*done.stderr.splitlines(), "git said nothing"][-1]
        raise PublishRefused(f"the workspace cannot be compared with its commit: {said}")
    return tuple(line[3:] for line in done.stdout.split("\0")[:MOST_PATHS] if line)


def _commit_of(source: Path, branch: str) -> str:
    return _output(source, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}")


def _output(source: Path, *arguments: str) -> str:
    return _source(source, *arguments).stdout.strip()


def _source(source: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _git(source, *arguments, owner=_owner(source))


def _bounded(folder: Path, *arguments: str, owner: tuple[int, int] | None = None) -> subprocess.CompletedProcess[str]:
    """Run git on what a workspace holds. Raises `PublishRefused` if that takes too much."""
    try:
        done = _git(folder, *arguments, owner=owner, limits=workspace.Limits(_GIT_SECONDS, _GIT_BYTES, MOST_BYTES))
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode < 0:  # a limit's signal
        raise PublishRefused(
            f"git was ended at the workspace's commits and files, which take more than {_GIT_SECONDS} s or too much"
            " space; look for huge files in the workspace"
        )
    return done


def _git(
    folder: Path,
    *arguments: str,
    owner: tuple[int, int] | None = None,
    limits: workspace.Limits | None = None,
) -> subprocess.CompletedProcess[str]:
    given = ("-C", os.fspath(folder), "-c", "safe.directory=*", *arguments)
    return workspace.git(*given, source=folder, user=owner, limits=limits)
