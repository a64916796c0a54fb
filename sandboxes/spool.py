"""Where the output of running commands lies: one folder a task, mounted into its sandbox where only the agent comes.

The agent writes a command's streams to files named by the command's id as they come, and then what became of it to
another. They stay until the outcome is in the log, so a library that is killed meanwhile loses nothing: whoever comes
next finds them (see `steward`). Nothing is lost either when we read slowly, memory stays bounded, and a child that
outlives its command delays nobody. The engine carries no output.

What lies here is the sandbox's word: names are opened without following links, sizes and records are checked.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import BinaryIO, final

import msgspec

from sandkeep.events import BlobStore
from sandkeep.events.catalogue import INLINE_BYTES, Output
from sandkeep.sandboxes.secrets import Secrets

OUTPUT_BYTES = 1 << 30
"""The most one stream of one command may write, or less if its task's limits say so; one that writes more is ended."""

STREAMS = {"stdout": "out", "stderr": "err"}

_logger = logging.getLogger(__name__)
_CHUNK = 1 << 18
_MOST_RECORD = 4096
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Ended(msgspec.Struct, frozen=True):
    """What the agent says became of a command. `reason` is why it was ended, empty if it ended by itself; `full` names
    the streams that were cut; `swept` is false if something of it may still run."""

    id: str
    exit: int
    reason: str
    swept: bool
    oom: bool
    duration_ns: int
    cpu_ns: int
    full: tuple[str, ...]


_record = msgspec.json.Decoder(Ended)


@final
class Spool:
    """The files of one command, made by the agent. Use as a context manager, which leaves the files where they are."""

    def __init__(self, folder: Path, command: str) -> None:
        self._command = command
        self._given = dict.fromkeys(STREAMS.values(), 0)
        self._files: dict[str, int] = {}
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *details: object) -> None:
        for file in self._files.values():
            os.close(file)
        os.close(self._folder)

    def ended(self) -> Ended | None:
        """What became of the command, if that is written down. Raises `msgspec.DecodeError` if it is no record."""
        file = self._open("end")
        return None if file is None else _record.decode(os.pread(file, _MOST_RECORD, 0))

    def fresh(self, name: str) -> bytes:
        """What was written to stream `name` ("out" or "err") since the last call: at most 256 KiB, empty if nothing."""
        file = self._open(name)
        data = b"" if file is None else os.pread(file, _CHUNK, self._given[name])
        self._given[name] += len(data)
        return data

    def read(self, name: str, after: int, most: int) -> bytes:
        """What was written to stream `name` so far behind its first `after` bytes, `most` bytes of it."""
        file = self._open(name)
        return b"" if file is None else os.pread(file, most, after)

    def output(self, name: str, blobs: BlobStore, secrets: Secrets, ended: Ended) -> Output:
        """Stream `name` of a command that has ended, without `secrets`; see `captured`.

        If it cannot be stored it is lost, cut to nothing, and that is logged. What it took of a full disk is given back
        at once, or the outcome could not be stored either.
        """
        file = self._open(name)
        if file is None:
            return Output(size=0, data=b"", truncated=name in ended.full)
        try:
            return captured(file, name in ended.full, blobs, secrets)
        except OSError as error:
            _logger.warning("the output of command %s could not be stored: %s", self._command, error)
            remove(f"{self._command}.{name}", self._folder)
            os.close(self._files.pop(name))
            return Output(size=0, data=b"", truncated=True)

    def remove(self) -> None:
        """Remove the files: their content is stored."""
        for name in (*STREAMS.values(), "new", "end"):
            remove(f"{self._command}.{name}", self._folder)

    def _open(self, name: str) -> int | None:
        if name not in self._files:
            try:
                file = os.open(f"{self._command}.{name}", _READ, dir_fd=self._folder)
            except OSError:  # not there yet, or a link
                return None
            if not stat.S_ISREG(os.fstat(file).st_mode):
                os.close(file)
                return None
            self._files[name] = file
        return self._files[name]


def most(asked: int) -> int:
    """The bytes that a stream may have of a command that is given so many, or 0 for as many as any."""
    return min(asked or OUTPUT_BYTES, OUTPUT_BYTES)


def captured(file: int, truncated: bool, blobs: BlobStore, secrets: Secrets, given: int = 0) -> Output:
    """What a file holds, up to `most(given)`, without `secrets`; what is too large for an event goes to `blobs`."""
    size = min(os.fstat(file).st_size, most(given))
    os.lseek(file, 0, os.SEEK_SET)
    with open(file, "rb", closefd=False) as stream:
        return kept(stream, size, truncated, blobs, secrets)


def kept(stream: BinaryIO, size: int, truncated: bool, blobs: BlobStore, secrets: Secrets) -> Output:
    """The `size` bytes of a stream without `secrets`: what is small as it is, what is large as a blob."""
    if size <= INLINE_BYTES:
        data = secrets.data(stream.read(size))
        if len(data) <= INLINE_BYTES:
            return Output(size=len(data), data=data, truncated=truncated)
        stream.seek(0)
    if secrets:
        blob, stored = blobs.put_stream(secrets.stream(stream, size))
    else:
        blob, stored = blobs.put_stream(stream, limit=size)
    return Output(size=stored, blob=blob, truncated=truncated)


def remove(name: str, folder: int) -> None:
    """Remove a file of a spool, whatever became of it."""
    try:
        os.unlink(name, dir_fd=folder)
    except (FileNotFoundError, IsADirectoryError):
        return
