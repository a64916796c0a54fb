"""Merging two versions of a text by their common ancestor, with `git merge-file`.

It runs on files of its own outside of any workspace and repository, without configuration, attributes or hooks; what it
is given is only ever content. What is binary, too large, or takes too long is not merged.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import msgspec

from sandkeep.sandboxes.workspace import git_environment

MAX_BYTES = 4 << 20
"""The largest text that is merged."""

_SECONDS = 20.0
_SNIFFED_BYTES = 8000


class Merged(msgspec.Struct, frozen=True):
    """A merge: its content, unless `overlaps` regions were changed on both sides."""

    content: bytes
    overlaps: int


def merge(base: bytes, ours: bytes, theirs: bytes, folder: Path) -> Merged | None:
    """Merge two texts; None for what is no text, or too large. Temporary files go to `folder`."""
    sides = {"ours": ours, "base": base, "theirs": theirs}
    if any(len(side) > MAX_BYTES or b"\0" in side[:_SNIFFED_BYTES] for side in sides.values()):
        return None
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for side, content in sides.items():
            (Path(name) / side).write_bytes(content)
        try:
            done = subprocess.run(
                ("git", "merge-file", "--stdout", "--quiet", "--", *sides),
                cwd=name,
                env=git_environment() | {"GIT_CEILING_DIRECTORIES": str(Path(name).parent)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None
    # Its exit status counts the overlaps, up to 127; beyond that it tells of an error.
    return Merged(done.stdout, done.returncode) if 0 <= done.returncode <= 127 else None
