"""Building an image from a Dockerfile and the folder it is in, its *context*.

The folder may come from anybody, even be written while it is read: it is walked through descriptors, no link in it is
followed, and there are bounds to how many files of how many bytes it may have. `.dockerignore` is read as Docker's own
SDK does. Owners and times are not taken, so that equal folders are equal contexts.

What the Dockerfile runs, it runs as root in a container of the engine's making, with a network unless that is refused:
build only what you would run. `ARG SANDKEEP_BASE` before `FROM $SANDKEEP_BASE` begins with our base image.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import docker
import docker.errors
import requests
import urllib3
from docker.utils.build import PatternMatcher

from sandkeep.sandboxes import image
from sandkeep.sandboxes.docker_archive import Measured
from sandkeep.sandboxes.errors import BadImage, ImageBuildFailed
from sandkeep.sandboxes.image import Made, NoImage, Progress
from sandkeep.sandboxes.packages import EPOCH
from sandkeep.sandboxes.recipe import REPOSITORY

NAME = "sandkeep.image"
"""The label of an image that was built from a Dockerfile: what we call it."""

BASE = "SANDKEEP_BASE"
"""The build argument that holds the name of our base image."""

MAX_FILES = 100_000
MAX_BYTES = 4 << 30
_MAX_DEPTH = 100
_MAX_DOCUMENT = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def build(
    client: docker.DockerClient,
    name: str,
    folder: Path,
    base: Callable[[], str],
    progress: Progress,
    measured: Measured,
    *,
    network: bool = True,
) -> Made:
    """The image that the Dockerfile in `folder` describes. `base` gives our base image, if it is asked for.

    Raises `BadImage` if the folder is not taken, and `ImageBuildFailed`.
    """
    with image.temporary_file() as context:
        progress(f"reading {folder}")
        with image.disk_errors():
            text = pack(folder, context)
        size = context.tell()
        context.seek(0)
        arguments = {BASE: base()} if re.search(rb"(?mi)^\s*ARG\s+" + BASE.encode() + rb"\b", text) else {}
        progress(f"building {name} from {size} bytes")
        with _telling(folder):
            answer = image.patient(client).build(
                fileobj=_Measured(context, size, measured),
                custom_context=True,
                rm=True,
                forcerm=True,
                decode=True,
                labels={NAME: name},
                buildargs=arguments,
                network_mode=None if network else "none",
            )
            built = image.follow(_watched(answer), progress)
    return image.publish(client, name, built, "dockerfile")


def pack(folder: Path, out: IO[bytes]) -> bytes:
    """Write a build's context as a tar, and return its Dockerfile. Raises `BadImage`."""
    try:
        root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BadImage(f"{folder} cannot be read ({error.strerror}); name the folder of a Dockerfile") from error
    try:
        text = _document(root, "Dockerfile")
        if text is None:
            raise BadImage(f"{folder} has no Dockerfile that is a plain file of up to 1 MiB; name another folder")
        ignored = (_document(root, ".dockerignore") or b"").decode("utf-8", "replace").splitlines()
        patterns = [line.strip() for line in ignored if line.strip() and not line.startswith("#")]
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
            _Context(tar, folder, patterns).add(root, "", 0)
    finally:
        os.close(root)
    return text


@contextlib.contextmanager
def _telling(folder: Path) -> Iterator[None]:
    try:
        yield
    except (NoImage, docker.errors.APIError) as error:
        said = " ".join(str(getattr(error, "explanation", None) or error).split())[:1000]
        raise ImageBuildFailed(f"the Dockerfile in {folder} cannot be built: {said}; mend it") from error
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(str(error)) from error


def _watched(answer: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What the engine says, up to where it would pull what it then calls like an image of ours. To stop reading ends
    the build."""
    for message in answer:
        pulled = str(message.get("status", "")).removeprefix("Pulling from ")
        if pulled.startswith(REPOSITORY):
            name = f"{pulled}:{message.get('id')}"
            raise NoImage(f"it pulls {name!r}, and no registry may supply what is called so; begin with ${BASE}")
        yield message


class _Context:
    def __init__(self, tar: tarfile.TarFile, folder: Path, patterns: list[str]) -> None:
        self._tar = tar
        self._folder = folder
        self._ignored = PatternMatcher([*patterns, "!Dockerfile"])
        self._excepted = any(pattern.startswith("!") for pattern in patterns)
        self._files = 0
        self._bytes = 0

    def add(self, parent: int, prefix: str, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise BadImage(f"{self._folder} is more than {_MAX_DEPTH} folders deep; ignore some in .dockerignore")
        with os.scandir(parent) as found:
            names = []
            for each in found:
                names.append(each.name)
                self._count(1, 0)
        for name in sorted(names):
            path = prefix + name
            left_out = self._ignored.matches(cast(Any, path))
            try:
                self._add_one(parent, name, path, left_out, depth)
            except (FileNotFoundError, NotADirectoryError):
                continue  # it went, or became something else, while we looked
            except OSError as error:
                # A link where a file or a folder was just now is ELOOP.
                raise BadImage(f"{self._folder}: {path!r} cannot be read: {error.strerror}") from error

    def _add_one(self, parent: int, name: str, path: str, left_out: bool, depth: int) -> None:
        kind = os.lstat(name, dir_fd=parent).st_mode
        entry = tarfile.TarInfo(path)
        entry.mode, entry.mtime = stat.S_IMODE(kind) & 0o1777, EPOCH
        if stat.S_ISDIR(kind):
            entry.type = tarfile.DIRTYPE
            if not left_out:
                self._tar.addfile(entry)
            elif not self._excepted:
                return
            descriptor = os.open(name, _FOLDER, dir_fd=parent)
            try:
                self.add(descriptor, f"{path}/", depth + 1)
            finally:
                os.close(descriptor)
        elif stat.S_ISLNK(kind) and not left_out:
            entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=parent)
            self._tar.addfile(entry)
        elif stat.S_ISREG(kind) and not left_out:
            with open(os.open(name, _FILE, dir_fd=parent), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    return
                self._count(0, status.st_size)
                entry.size = status.st_size
                self._tar.addfile(entry, file)

    def _count(self, files: int, size: int) -> None:
        self._files += files
        self._bytes += size
        if self._files > MAX_FILES or self._bytes > MAX_BYTES:
            raise BadImage(
                f"{self._folder} has more than {MAX_FILES} files or {MAX_BYTES} bytes; ignore some in .dockerignore"
            )


class _Measured:
    """A file that tells how far it has been read."""

    def __init__(self, file: IO[bytes], size: int, measured: Measured) -> None:
        self._file = file
        self._size = size
        self._measured = measured
        self._done = 0

    def __len__(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self._file.read(size)
        self._done += len(data)
        self._measured(self._done, self._size)
        return data


def _document(folder: int, name: str) -> bytes | None:
    """A small plain file in a folder, None if that is not what is there."""
    try:
        with open(os.open(name, _FILE, dir_fd=folder), "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_DOCUMENT:
                return file.read(_MAX_DOCUMENT)
    except OSError:
        pass
    return None
