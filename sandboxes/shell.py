"""Running commands without the agent, in images that have no Python and are lent none: by the engine, through the
image's shell.

Each command is an exec of the engine and writes its two streams to files that we made and hold open before it starts,
in the spool folder, so nothing is lost when we read slowly, memory stays bounded, a child that outlives its command
delays nobody, and what the command does to the names in the folder cannot make us read another file.

What this lacks: a command costs a hundred times as much; a timeout ends *everything* in the sandbox, by restarting it;
there are no input, no background processes and no terminal; memory kills are not told; and a command whose caller died
is ended with its outcome unknown.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

from sandkeep.events import BlobStore
from sandkeep.events.catalogue import Output
from sandkeep.sandboxes import spool, workspace
from sandkeep.sandboxes.container import SPOOL
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.errors import CommandNotFound, OutsideWorkspace
from sandkeep.sandboxes.secrets import Secrets
from sandkeep.sandboxes.spool import Ended, captured

NOT_FOUND, NO_FOLDER = b"command-not-found\n", b"no-such-folder\n"
"""What the note of a command says if it could not be started."""

_CHUNK = 1 << 16
_WATCH_SECONDS = 0.25
_STREAM_SECONDS = 0.05

# The program is found before its streams are redirected, so that its absence is told apart from its own failures. The
# word that the shell puts into the note is gone by the time the program runs, which therefore cannot write one.
_SCRIPT = """
unset _sandkeep _word; _sandkeep=$1 _word=$2
cd -- "$3" 2>/dev/null || { echo "$_word no-such-folder" >"$_sandkeep.note"; exit 127; }; shift 3
command -v -- "$1" >/dev/null 2>&1 || { echo "$_word command-not-found" >"$_sandkeep.note"; exit 127; }
exec "$@" </dev/null >>"$_sandkeep.out" 2>>"$_sandkeep.err"
"""


@final
class ShellSpool:
    """The files of one command. Use as a context manager: at its end they are gone."""

    def __init__(self, folder: Path, command: str, most: int = 0) -> None:
        """Make the files in `folder`; `command` is the command's id, `most` what a stream may have; see
        `spool.most`."""
        self._most = most
        self._command = command
        self._word = secrets.token_hex(8)
        self._given = {"out": 0, "err": 0}
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._files = {name: self._make(f"{command}.{name}") for name in ("out", "err", "note")}

    def __enter__(self) -> ShellSpool:
        return self

    def __exit__(self, *details: object) -> None:
        for name, file in self._files.items():
            os.close(file)
            spool.remove(f"{self._command}.{name}", self._folder)
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
        return any(map(self._full, self._given))

    def fresh(self, name: str) -> bytes:
        """What was written to stream `name` ("out" or "err") since the last call: at most 64 KiB, empty if nothing."""
        data = os.pread(self._files[name], _CHUNK, self._given[name])
        self._given[name] += len(data)
        return data

    def output(self, name: str, blobs: BlobStore, secrets: Secrets) -> Output:
        """Stream `name` as it is now, without `secrets`; what is too large for an event goes to `blobs`."""
        return captured(self._files[name], self._full(name), blobs, secrets, self._most)

    def _full(self, name: str) -> bool:
        return os.fstat(self._files[name]).st_size > spool.most(self._most)

    def _make(self, name: str) -> int:
        flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=self._folder)
        if os.getuid() == 0:
            os.fchown(file, *workspace.owner())
        return file


def run(
    engine: Engine,
    container: str,
    files: ShellSpool,
    argv: tuple[str, ...],
    env: Mapping[str, str],
    folder: str,
    timeout: float,
    pump: Callable[[], None] | None,
    end_all: Callable[[], None],
) -> Ended:
    """Run `argv` and wait for it; `pump` is called while there may be new output.

    When its time is up, or it has written too much, `end_all` has to end everything in the sandbox. Raises
    `CommandNotFound`, `OutsideWorkspace` if `folder` is not there, and what the engine raises.
    """

    def tick() -> bool:
        if pump is not None:
            pump()
        return not files.full()

    begun = time.monotonic()
    interval = _WATCH_SECONDS if pump is None else _STREAM_SECONDS
    exit_code = engine.run(container, files.argv(argv, folder), env, begun + timeout, tick, interval)
    taken = int((time.monotonic() - begun) * 1e9)
    if exit_code is None:
        end_all()
    note = files.note()
    if note == NOT_FOUND:
        raise not_found(argv[0])
    if note == NO_FOLDER:
        raise no_folder(folder)
    reason = "" if exit_code is not None else "output" if files.full() else "timeout"
    return Ended("", exit_code or 0, reason, True, False, taken, 0, ())


def not_found(program: str) -> CommandNotFound:
    """There is no such program."""
    return CommandNotFound(f"the sandbox has no program {program!r}; check its name, or use an image that has it")


def no_folder(folder: str) -> OutsideWorkspace:
    """There is no such folder."""
    return OutsideWorkspace(f"the workspace has no folder {folder!r} to run in; make it first")
