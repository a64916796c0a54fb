"""Running one command in a sandbox: what may be asked, and what came of it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from sandkeep.events import BadInput, BlobStore
from sandkeep.events.catalogue import Output
from sandkeep.sandboxes.conflict_work import News
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.errors import BadTimeout, CommandNotFound, OutsideWorkspace
from sandkeep.sandboxes.secrets import Secrets
from sandkeep.sandboxes.spool import NO_FOLDER, NOT_FOUND, Spool

DEFAULT_TIMEOUT_SECONDS = 600.0
MAX_TIMEOUT_SECONDS = 86_400.0

TIMED_OUT = 124
"""The exit code of a command whose time was up, as GNU timeout has it."""

FLOODED = 125
"""The exit code of a command that was ended because it wrote more than `spool.OUTPUT_BYTES`."""

Streamed = Callable[[str, bytes], None]
"""Called with "stdout" or "stderr" and what was just written to it."""

_NAMES = {"stdout": "out", "stderr": "err"}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_WORDS_BYTES = 32 * 1024
_WATCH_SECONDS = 0.25
_STREAM_SECONDS = 0.05


class Result(msgspec.Struct, frozen=True):
    """What a command did. `stdout` and `stderr` hold small output themselves and name the blob of a larger one; `news`
    is what other agents did, if several work on the task."""

    command: str
    exit_code: int
    duration_s: float
    timed_out: bool
    stdout: Output
    stderr: Output
    news: News | None = None


def check_argv(argv: Sequence[str]) -> tuple[str, ...]:
    """The command line, if it can be run and recorded. Raises `BadInput`."""
    if isinstance(argv, str) or not argv or not argv[0]:
        raise BadInput("a command is a list of words, the program first; for a shell line give ['sh', '-c', LINE]")
    return _words(argv, "the command line")


def check_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The variables, if they can be set. Raises `BadInput`."""
    for name in env:
        if not _VARIABLE.fullmatch(name):
            raise BadInput(f"{name!r} cannot name an environment variable; use letters, digits and _")
    return dict(zip(env, _words(list(env.values()), "the environment"), strict=True))


def check_variables(env: Mapping[str, str], secrets: Mapping[str, str]) -> tuple[dict[str, str], Secrets]:
    """All variables, and those of them that are secret. Raises `BadInput`."""
    if twice := sorted(set(env) & set(secrets)):
        raise BadInput(f"{twice[0]} is given as a variable and as a secret; give it once")
    return check_environment({**env, **secrets}), Secrets(secrets)


def check_timeout(seconds: float) -> float:
    """The timeout, if it is one. Raises `BadTimeout`."""
    if not (math.isfinite(seconds) and 0 < seconds <= MAX_TIMEOUT_SECONDS):
        raise BadTimeout(
            f"a timeout of {seconds:g} s cannot be; give more than 0 and at most {MAX_TIMEOUT_SECONDS:.0f}"
        )
    return seconds


def run(
    engine: Engine,
    container: str,
    spool: Spool,
    argv: tuple[str, ...],
    env: Mapping[str, str],
    folder: str,
    timeout: float,
    on_output: Streamed | None,
    end_all: Callable[[], None],
) -> tuple[int, float, bool]:
    """Run `argv`; returns exit code, seconds taken, and whether its time was up.

    When its time is up, or it has written too much, `end_all` has to end everything in the sandbox. Raises
    `CommandNotFound`, `OutsideWorkspace` if `folder` is not there, and what the engine raises.
    """

    def pump() -> None:
        for name, file in _NAMES.items():
            while on_output is not None and (data := spool.fresh(file)):
                on_output(name, data)

    def tick() -> bool:
        pump()
        return not spool.full()

    begun = time.monotonic()
    interval = _WATCH_SECONDS if on_output is None else _STREAM_SECONDS
    exit_code = engine.run(container, spool.argv(argv, folder), env, begun + timeout, tick, interval)
    taken = time.monotonic() - begun
    if exit_code is None:
        end_all()
    pump()
    note = spool.note()
    if note == NOT_FOUND:
        raise CommandNotFound(f"the sandbox has no program {argv[0]!r}; check its name, or use an image that has it")
    if note == NO_FOLDER:
        raise OutsideWorkspace(f"the workspace has no folder {folder!r} to run in; make it first")
    if exit_code is None:
        return (FLOODED, taken, False) if spool.full() else (TIMED_OUT, taken, True)
    return exit_code, taken, False


def content(output: Output, blobs: BlobStore) -> bytes:
    """All bytes of a captured stream. Raises `BlobMissing` and `BlobDamaged`."""
    return b"".join(chunks(output, blobs))


def chunks(output: Output, blobs: BlobStore) -> Iterable[bytes]:
    """The same in pieces; a blob is only known to be undamaged when the last one has come."""
    return blobs.chunks(output.blob) if output.blob is not None else (output.data or b"",)


def _words(words: Sequence[str], what: str) -> tuple[str, ...]:
    try:
        size = sum(len(word.encode()) for word in words)
    except UnicodeEncodeError as error:
        raise BadInput(f"{what} holds what is not UTF-8; pass such bytes in a file") from error
    if any("\0" in word for word in words):
        raise BadInput(f"{what} holds a NUL character, which no program can be given")
    if size > _MAX_WORDS_BYTES:
        raise BadInput(f"{what} has {size} bytes, more than {_MAX_WORDS_BYTES}; put it into a file of the workspace")
    return tuple(words)
