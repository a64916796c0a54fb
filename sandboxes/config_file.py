"""A file of somebody else's, such as an agent's configuration: read whole, replaced whole, removed.

It is reached through descriptors below a root that is trusted, and no symbolic link on the way is followed: a
repository may hold one that leads anywhere. What replaces it is written under a temporary name, synced and renamed,
with the mode and owner of what was there. One that another has changed since it was read is not replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from sandkeep.events import SandkeepError
from sandkeep.sandboxes.errors import ConfigRefused

MAX_BYTES = 64 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Place(msgspec.Struct, frozen=True):
    """Where a file is: its path below a root, which may be reached through links."""

    root: Path
    path: PurePosixPath

    def __str__(self) -> str:
        return os.fspath(self.root / self.path)

    def beside(self, suffix: str) -> Place:
        """The file whose name has `suffix` behind it."""
        return Place(self.root, self.path.with_name(self.path.name + suffix))


class Content(msgspec.Struct, frozen=True):
    """What a file held when it was read, and how it is told that it is still the same."""

    data: bytes
    mode: int
    owner: tuple[int, int]
    stamp: tuple[int, int, int]


def read(place: Place) -> Content | None:
    """What is there; None if nothing is. Raises `ConfigRefused`."""
    try:
        with _folder(place, make=False) as folder:
            return _read(folder, place)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refused(place, error) from error


def replace(place: Place, data: bytes, was: Content | None, like: Content | None = None) -> None:
    """Put `data` there, durably, if there still is what `was` read, with the mode and owner of `like`, or else of what
    was there. Folders that are missing are made. Raises `ConfigRefused`, and then nothing has changed."""
    temporary = f".sandkeep-{secrets.token_hex(8)}"
    try:
        with _folder(place, make=True) as folder:
            try:
                _write(folder, temporary, data, like or was)
                _check(folder, place, was)
                os.rename(temporary, place.path.name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                raise
            os.fsync(folder)
    except OSError as error:
        raise _refused(place, error) from error


def remove(place: Place, was: Content) -> None:
    """Remove it, if it still is what `was` read, and the folder it is in if that is empty then and lies below the root.
    Raises `ConfigRefused`."""
    try:
        with _folder(place, make=False) as folder:
            _check(folder, place, was)
            os.unlink(place.path.name, dir_fd=folder)
    except OSError as error:
        raise _refused(place, error) from error
    for above in place.path.parents[:-1]:
        try:
            with _folder(Place(place.root, above), make=False) as folder:
                os.rmdir(above.name, dir_fd=folder)
        except OSError:  # something else is in it
            return


@contextlib.contextmanager
def _folder(place: Place, *, make: bool) -> Iterator[int]:
    """The folder that the file is in, opened."""
    folder = os.open(place.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in place.path.parts[:-1]:
            if name == "..":
                raise OSError(errno.EINVAL, "it leads out of its folder")
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=folder)
            inner = os.open(name, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def _read(folder: int, place: Place) -> Content:
    descriptor = os.open(place.path.name, _READ, dir_fd=folder)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigRefused(f"{place} is no file; move it away")
        if status.st_size > MAX_BYTES:
            raise ConfigRefused(f"{place} has more than {MAX_BYTES >> 20} MiB, so it is no configuration; look at it")
        data = file.read()
    return Content(data, stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid), _stamp(status))


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _write(folder: int, name: str, data: bytes, like: Content | None) -> None:
    descriptor = os.open(name, _NEW, 0o666 if like is None else 0o600, dir_fd=folder)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        if like is not None:
            if (os.geteuid(), os.getegid()) != like.owner:
                with contextlib.suppress(PermissionError):  # only root may give files away
                    os.fchown(descriptor, *like.owner)
            os.fchmod(descriptor, like.mode)
        os.fsync(descriptor)


def _check(folder: int, place: Place, was: Content | None) -> None:
    try:
        now = _stamp(os.stat(place.path.name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        now = None
    if now != (None if was is None else was.stamp):
        raise ConfigRefused(f"{place} was changed by somebody else meanwhile; run it again")


def _refused(place: Place, error: OSError) -> SandkeepError:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return ConfigRefused(f"{place} leads through a symbolic link, which is not followed; edit what it leads to")
    return ConfigRefused(f"{place} cannot be changed: {error.strerror}; see to that, and run it again")
