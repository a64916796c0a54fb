"""Running one command in a sandbox: what may be asked, and what came of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from sandkeep.events import BadInput, BlobStore
from sandkeep.events.catalogue import Output
from sandkeep.sandboxes.conflict_work import News
from sandkeep.sandboxes.errors import BadTimeout
from sandkeep.sandboxes.secrets import Secrets

DEFAULT_TIMEOUT_SECONDS = 600.0
MAX_TIMEOUT_SECONDS = 86_400.0

TIMED_OUT = 124
"""The exit code of a command whose time was up, as GNU timeout has it."""

FLOODED = 125
"""The exit code of a command that was ended because it wrote more than `spool.OUTPUT_BYTES`."""

Streamed = Callable[[str, bytes], None]
"""Called with "stdout" or "stderr" and what was just written to it."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_WORDS_BYTES = 32 * 1024


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
    oom_killed: bool = False


def check_argv(argv: Sequence[str]) -> tuple[str, ...]:
    """The command line, if it can be run and recorded. Raises `BadInput`."""
    if isinstance(argv, str) or not argv or not argv[0]:
        raise BadInput("a command is a list of words, the program first; for a shell line give ['sh', '-c', LINE]")
    return _checked(argv, "the command line")


def check_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The variables, if they can be set. Raises `BadInput`."""
    for name in env:
        if not _VARIABLE.fullmatch(name):
            raise BadInput(f"{name!r} cannot name an environment variable; use letters, digits and _")
    return dict(zip(env, _checked(list(env.values()), "the environment"), strict=True))


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


def content(output: Output, blobs: BlobStore) -> bytes:
    """All bytes of a captured stream. Raises `BlobMissing` and `BlobDamaged`."""
    return b"".join(chunks(output, blobs))


def part(output: Output, blobs: BlobStore, offset: int, most: int) -> bytes:
    """At most `most` bytes of a captured stream from `offset` on; no more of it is held in memory. Raises as
    `content`."""
    data, at = bytearray(), 0
    for piece in chunks(output, blobs):  # to the end, where it is known to be undamaged
        begin = max(0, offset - at)
        data += piece[begin : begin + most - len(data)]
        at += len(piece)
    return bytes(data)


def chunks(output: Output, blobs: BlobStore) -> Iterable[bytes]:
    """The same in pieces; a blob is only known to be undamaged when the last one has come."""
    return blobs.chunks(output.blob) if output.blob is not None else (output.data or b"",)


def _checked(words: Sequence[str], what: str) -> tuple[str, ...]:
    try:
        size = sum(len(word.encode()) for word in words)
    except UnicodeEncodeError as error:
        raise BadInput(f"{what} holds what is not UTF-8; pass such bytes in a file") from error
    if any("\0" in word for word in words):
        raise BadInput(f"{what} holds a NUL character, which no program can be given")
    if size > _MAX_WORDS_BYTES:
        raise BadInput(f"{what} has {size} bytes, more than {_MAX_WORDS_BYTES}; put it into a file of the workspace")
    return tuple(words)
