"""Where the output of running commands lies: one folder a task, mounted into its sandbox.

Each command writes its two streams to files that we made and hold open before it starts, so nothing is lost when we
read slowly, memory stays bounded, a child that outlives its command delays nobody, and what the command does to the
names in the folder cannot make us read another file. The engine carries no output.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import final

from sandkeep.events import BlobStore
from sandkeep.events.catalogue import INLINE_BYTES, Output
from sandkeep.sandboxes import workspace
from sandkeep.sandboxes.engine import SPOOL
from sandkeep.sandboxes.secrets import Secrets

OUTPUT_BYTES = 1 << 30
"""The most one stream of one command may write, or less if its task's limits say so; one that writes more is ended."""

NOT_FOUND, NO_FOLDER = b"command-not-found\n", b"no-such-folder\n"
"""What the note of a command says if it could not be started."""

_CHUNK = 1 << 16

# The program is found before its streams are redirected, so that its absence is told apart from its own failures. The
# word that the shell puts into the note is gone by the time the program runs, which therefore cannot write one.
_SCRIPT = """
unset _sandkeep _word; _sandkeep=$1 _word=$2
cd -- "$3" 2>/dev/null || { echo "$_word no-such-folder" >"$_sandkeep.note"; exit 127; }; shift 3
command -v -- "$1" >/dev/null 2>&1 || { echo "$_word command-not-found" >"$_sandkeep.note"; exit 127; }
exec "$@" </dev/null >>"$_sandkeep.out" 2>>"$_sandkeep.err"
"""


@final
class Spool:
    """The files of one command. Use as a context manager: at its end they are gone."""

    def __init__(self, folder: Path, command: str, most: int = 0) -> None:
        """Make the files in `folder`; `command` is the command's id, `most` the bytes that a stream may have."""
        self._limit = most
        self._command = command
        self._word = secrets.token_hex(8)
        self._given = {"out": 0, "err": 0}
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._files = {name: self._make(f"{command}.{name}") for name in ("out", "err", "note")}

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *details: object) -> None:
        for name, file in self._files.items():
            os.close(file)
            try:
                os.unlink(f"{self._command}.{name}", dir_fd=self._folder)
            except (FileNotFoundError, IsADirectoryError):
                continue  # the command may have removed its own files, or put others in their place
        os.close(self._folder)

    def argv(self, argv: tuple[str, ...], folder: str) -> list[str]:
        """The command line that runs `argv` in `folder` of the sandbox with its streams in these files."""
        return ["/bin/sh", "-c", _SCRIPT, "sandkeep", str(SPOOL / self._command), self._word, folder, *argv]

    def note(self) -> bytes:
        """Why the command could not be started; empty if it was."""
        word, _, note = os.pread(self._files["note"], 64, 0).partition(b" ")
        return note if word == self._word.encode() else b""

    def full(self) -> bool:
        """Whether a stream has grown beyond what it may have."""
        return any(os.fstat(self._files[name]).st_size > self._most for name in self._given)

    @property
    def _most(self) -> int:
        return min(self._limit or OUTPUT_BYTES, OUTPUT_BYTES)

    def fresh(self, name: str) -> bytes:
        """What was written to stream `name` ("out" or "err") since the last call: at most 64 KiB, empty if nothing."""
        data = os.pread(self._files[name], _CHUNK, self._given[name])
        self._given[name] += len(data)
        return data

    def output(self, name: str, blobs: BlobStore, secrets: Secrets) -> Output:
        """Stream `name` as it is now, without `secrets`; what is too large for an event goes to `blobs`."""
        file = self._files[name]
        size = os.fstat(file).st_size
        if size <= INLINE_BYTES:
            data = secrets.data(os.pread(file, INLINE_BYTES, 0))
            if len(data) <= INLINE_BYTES:
                return Output(size=len(data), data=data)
        os.lseek(file, 0, os.SEEK_SET)
        with open(file, "rb", closefd=False) as stream:
            if secrets:
                blob, stored = blobs.put_stream(secrets.stream(stream, min(size, self._most)))
            else:
                blob, stored = blobs.put_stream(stream, limit=min(size, self._most))
        return Output(size=stored, blob=blob, truncated=size > self._most)

    def _make(self, name: str) -> int:
        flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=self._folder)
        if os.getuid() == 0:
            os.fchown(file, *workspace.owner())
        return file
