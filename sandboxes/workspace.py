"""A task's folders: the workspace, cloned from a git repository or empty, and who owns them.

The source is only read: a clone copies its commits, never its working tree, configuration or hooks. It is hostile, so
git runs without the user's and the system's configuration, without hooks, templates and submodules, and asks nothing.
The clone goes through git's transport instead of copying files, so that links in the source lead nowhere and what it
borrows from another repository comes along.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import msgspec

from sandkeep.sandboxes import intent
from sandkeep.sandboxes.errors import NotARepository, OutsideWorkspace

MOUNT = PurePosixPath("/workspace")
"""Where a sandbox sees the workspace."""

_GIT = ("git", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "protocol.allow=never")

# The process that reads the source is not given the options of the one that clones it.
_SERVE = "git -c 'safe.directory=*' upload-pack"

# A limit that this process cannot raise is less than what is wanted here, and stays.
_LIMITED = ("sh", "-c", 'for each in "-v $1" "-f $2" "-t $3"; do ulimit $each 2>&-; done; shift 3; exec "$@"', "sh")

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def owner() -> tuple[int, int]:
    """The user and group that own workspaces and run commands: ours, or 1000 when we are root."""
    return (os.getuid(), os.getgid()) if os.getuid() else (1000, 1000)


def check_source(source: Path) -> Path:
    """The absolute path of a repository that can be cloned. Raises `NotARepository`."""
    source = source.resolve()
    if not source.is_dir():
        raise NotARepository(f"{source} is no folder; give the top folder of a git repository")
    result = git("-C", os.fspath(source), "rev-parse", "--show-prefix", source=source)
    if result.returncode != 0:
        raise NotARepository(f"{source} is no git repository; give one, or make one there with 'git init'")
    if result.stdout.strip():
        top = source.parents[len(PurePosixPath(result.stdout.strip()).parts) - 1]
        raise NotARepository(f"{source} lies inside the git repository {top}; give that folder")
    return source


def prepare(workspace: Path, source: Path | None) -> str | None:
    """Make `workspace`, a clone of `source` if one is given, and return the commit it is at, if it has one. It may be
    there already, if it is empty.

    Raises `NotARepository` with git's last words if it cannot be cloned.
    """
    if source is None:
        workspace.mkdir(mode=0o755, parents=True, exist_ok=True)
        commit = None
    else:
        workspace.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        options = ("--quiet", "--no-local", "--no-recurse-submodules", "--template=", f"--upload-pack={_SERVE}")
        result = git("clone", *options, "--", os.fspath(source), os.fspath(workspace), source=source)
        if result.returncode != 0:
            words = result.stderr.strip().splitlines() or ["git said nothing"]
            raise NotARepository(f"{source} cannot be cloned: {words[-1]}")
        head = git("-C", os.fspath(workspace), "rev-parse", "--verify", "--quiet", "HEAD", source=workspace)
        commit = head.stdout.strip() or None
    give(workspace)
    return commit


def give(folder: Path) -> None:
    """Make the workspaces' owner the owner of `folder` and all in it, however deep. No link is followed."""
    if os.getuid() != 0:
        return
    uid, gid = owner()
    os.chown(folder, uid, gid, follow_symlinks=False)
    if os.listdir(folder):
        command = ("chown", "-hR", f"{uid}:{gid}", "--", os.fspath(folder))
        subprocess.run(command, check=True, pass_fds=intent.inherited())


def remove(folder: Path) -> None:
    """Remove `folder` and all in it, however deep, if it is there. No link is followed; nothing else may be at work
    in it."""
    try:
        folder.chmod(stat.S_IRWXU)
    except FileNotFoundError:
        return
    root = os.open(folder, _FOLDER)
    try:
        empty(root)
    finally:
        os.close(root)
    folder.rmdir()


def empty(root: int) -> None:
    """Remove all that is in the folder open as `root`, as `remove` does."""
    while names := os.listdir(root):
        for name in names:
            if _is_folder(name, root):
                _empty(name, root)
                os.rmdir(name, dir_fd=root)
            else:
                os.unlink(name, dir_fd=root)


def _empty(name: str, root: int) -> None:
    """Empty the folder `name` of `root`; folders in it become folders of `root`, so that depth costs nothing."""
    folder = _seize(name, root)
    try:
        for inner in os.listdir(folder):
            if _is_folder(inner, folder):
                os.close(_seize(inner, folder))
                os.rename(inner, secrets.token_hex(16), src_dir_fd=folder, dst_dir_fd=root)
            else:
                os.unlink(inner, dir_fd=folder)
    finally:
        os.close(folder)


def _seize(name: str, above: int) -> int:
    """Open a folder in another. Root may remove what is in a folder without write permission; its owner has to take
    the permission first, by a descriptor, since a mode that is set by name is set of what a link points to."""
    held = os.open(name, os.O_PATH | _FOLDER, dir_fd=above)
    try:
        os.chmod(f"/proc/self/fd/{held}", stat.S_IRWXU)
        return os.open(".", _FOLDER, dir_fd=held)
    finally:
        os.close(held)


def descend(root: int, names: Iterable[bytes], *, make: bool = False) -> int:
    """The folder that `names` lead to below the one open as `root`, opened. What is not there is made, if `make`.

    No link is followed, and no way up is taken. Raises `OSError`.
    """
    folder = os.dup(root)
    try:
        for name in names:
            if name in (b"", b".", b".."):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=folder)
                    if os.getuid() == 0:
                        os.chown(name, *owner(), dir_fd=folder, follow_symlinks=False)
            inner = os.open(name, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
    except BaseException:
        os.close(folder)
        raise
    return folder


def _is_folder(name: str, folder: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)


def inside(path: str) -> PurePosixPath:
    """The sandbox's absolute path for `path`, relative to the workspace or absolute. Raises `OutsideWorkspace`."""
    parts: list[str] = []
    for part in (MOUNT / path).parts[1:]:
        if part == "..":
            parts = parts[:-1]
        else:
            parts.append(part)
    found = PurePosixPath("/", *parts)
    if "\0" in path or not found.is_relative_to(MOUNT):
        raise OutsideWorkspace(f"{path!r} leads out of the workspace; give a path below {MOUNT}")
    return found


def git_environment() -> dict[str, str]:
    """The variables that git runs with: nothing of the user's, and no configuration but a repository's own."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_LAZY_FETCH": "1",
    }


class Limits(msgspec.Struct, frozen=True):
    """What git may take: so many `seconds`, bytes of `memory` in each process, and bytes of a `file` that it writes."""

    seconds: int
    memory: int
    file: int

    def words(self) -> tuple[str, ...]:
        """The beginning of a command that has these limits, and all that it starts."""
        return (*_LIMITED, str(self.memory // 1024), str(self.file // 512), str(self.seconds))


def git(
    *arguments: str, source: Path, user: tuple[int, int] | None = None, limits: Limits | None = None
) -> subprocess.CompletedProcess[str]:
    """Run git where `source` is, or is to be, without what others could make it do; as another `user` and group, if
    one is given and we are root. Raises `subprocess.TimeoutExpired` if there are `limits`."""
    # The caller chose this source, so git's check of who owns it would only forbid what was asked for.
    trusted = (
        "-c",
        f"safe.directory={source}",
        "-c",
        f"safe.directory={source / '.git'}",
        "-c",
        "protocol.file.allow=always",
    )
    return subprocess.run(
        (*(limits.words() if limits else ()), *_GIT, *trusted, *arguments),
        timeout=limits.seconds if limits else None,
        env=git_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        pass_fds=intent.inherited(),
        user=None if user is None else user[0],
        group=None if user is None else user[1],
        extra_groups=None if user is None else (),
    )
