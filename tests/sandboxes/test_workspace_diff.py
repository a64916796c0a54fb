"""What differs between workspaces: whole, in bounded time, and harmless to look at."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import BlobStore
from sandkeep.sandboxes import unified, workspace_diff
from sandkeep.sandboxes.workspace_diff import FileDiff

from .support import take

_HEAD = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_texts = st.lists(st.sampled_from((b"a", b"b", b"c", b"d", b"")), max_size=30).map(b"\n".join)


def patched(old: bytes, hunks: Iterator[str], tmp_path: Path) -> bytes:
    """What git makes of a text with these hunks."""
    file = tmp_path / "file"
    file.write_bytes(old)
    body = "".join(line + "\n" for line in hunks)
    command = ["git", "apply", "--unidiff-zero", "--whitespace=nowarn", "-"]
    head = "--- a/file\n+++ b/file\n"
    done = subprocess.run(command, input=(head + body).encode(), cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, (done.stderr, body)
    return file.read_bytes()


def applied(old: bytes, hunks: Iterator[str]) -> bytes:
    """The text that the hunks lead to, checked line by line against the text that they begin from."""
    lines = old.split(b"\n")
    lines = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    found: list[bytes] = []
    at = left = other = 0
    last = ""
    for hunk in hunks:
        if head := _HEAD.fullmatch(hunk):
            assert (left, other) == (0, 0)
            first, left, to, other = (1 if each is None else int(each) for each in head.groups())
            start = first - 1 if left else first
            assert start >= at
            found += lines[at:start]
            at = start
            assert len(found) == (to - 1 if other else to)
            continue
        text = hunk[1:].encode() + b"\n"
        if hunk.startswith("\\"):
            if last in " +":
                found[-1] = found[-1].removesuffix(b"\n")
            if last in " -":
                assert not lines[at - 1].endswith(b"\n")
            continue
        last = hunk[0]
        if last in " -":
            assert lines[at].removesuffix(b"\n") == hunk[1:].encode()
            at, left = at + 1, left - 1
        if last in " +":
            found.append(text)
            other -= 1
    assert (left, other) == (0, 0)
    return b"".join(found + lines[at:])


@given(old=_texts, new=_texts)
def test_hunks_lead_from_one_text_to_the_other(old: bytes, new: bytes) -> None:
    assert applied(old, unified.hunks(old, new)) == new
    assert (list(unified.hunks(old, new)) == []) == (old == new)


def test_git_applies_what_is_shown(tmp_path: Path) -> None:
    old = b"".join(b"line %d\n" % number for number in range(100))
    for new in (
        old.replace(b"line 50\n", b"changed\n"),
        old.replace(b"line 1\n", b"").replace(b"line 8\n", b"").replace(b"line 60\n", b"line 60\nand more\n"),
        old + b"without an end",
        b"first\n" + old,
    ):
        assert patched(old, unified.hunks(old, new), tmp_path) == new


def test_only_what_is_around_a_change_is_shown() -> None:
    old = b"".join(b"line %d\n" % number for number in range(100))
    shown = list(unified.hunks(old, old.replace(b"line 50\n", b"changed\n")))
    assert shown == [
        *("@@ -48,7 +48,7 @@", " line 47", " line 48", " line 49", "-line 50", "+changed"),
        *(" line 51", " line 52", " line 53"),
    ]


def test_texts_that_would_take_too_long_are_shown_all_the_same() -> None:
    old = b"".join(b"%d\n" % (number % 7) for number in range(100_000))
    new = b"".join(b"%d\n" % (number % 5) for number in range(100_000))
    started = time.process_time()
    shown = list(unified.hunks(old, new))
    assert time.process_time() - started < 5
    assert applied(old, iter(shown)) == new


def test_every_kind_of_difference_is_told(tmp_path: Path, blobs: BlobStore) -> None:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "text").write_text("one\ntwo\n")
    (root / "gone").write_text("gone\n")
    (root / "binary").write_bytes(b"\0one")
    (root / "large").write_bytes(b"x\n" * workspace_diff.MOST_TEXT_BYTES)
    (root / "mode").write_text("")
    (root / "link").symlink_to("one")
    (root / "kind").write_text("kind\n")
    (root / "same").write_text("same\n")
    before = take(root, blobs).digest
    (root / "text").write_text("one\nthree\n")
    (root / "gone").unlink()
    (root / "binary").write_bytes(b"\0another")
    (root / "large").write_bytes(b"y\n" * workspace_diff.MOST_TEXT_BYTES)
    (root / "mode").chmod(0o755)
    (root / "link").unlink()
    (root / "link").symlink_to("\x1b[31m")
    (root / "kind").unlink()
    os.mkfifo(root / "kind")
    os.utime(root / "same", ns=(1, 1))
    (root / "sub" / "new").mkdir()
    (root / "sub" / "new" / "file").write_bytes(b"\xff\n")
    after = take(root, blobs).digest
    assert list(workspace_diff.diff(before, after, blobs)) == [
        FileDiff("binary", "modified", "4B became 8B, binary"),
        FileDiff("gone", "removed", "5B file", ("@@ -1 +0,0 @@", "-gone"), 0, 1),
        FileDiff("kind", "modified", "5B file became fifo"),
        FileDiff("large", "modified", "2MiB became 2MiB"),
        FileDiff("link", "modified", "link to 'one' became one to '\\x1b[31m'"),
        FileDiff("mode", "modified", "mode 0644 became 0755"),
        FileDiff("sub/new", "added", "folder"),
        FileDiff("sub/new/file", "added", "2B file", ("@@ -0,0 +1 @@", "+\\xff"), 1, 0),
        FileDiff("text", "modified", "8B became 10B", ("@@ -1,2 +1,2 @@", " one", "-two", "+three"), 1, 1),
    ]
    assert [each.path for each in workspace_diff.diff(before, after, blobs, (b"sub", b"mode"))] == [
        *("mode", "sub/new", "sub/new/file")
    ]
    assert list(workspace_diff.diff(before, after, blobs, (b"text",), text=False)) == [
        FileDiff("text", "modified", "8B became 10B", (), 1, 1)
    ]


def test_of_a_long_difference_the_first_lines_are_kept(tmp_path: Path, blobs: BlobStore) -> None:
    (tmp_path / "tree").mkdir()
    before = take(tmp_path / "tree", blobs).digest
    (tmp_path / "tree" / "file").write_text("line\n" * 10_000)
    (found,) = workspace_diff.diff(before, take(tmp_path / "tree", blobs).digest, blobs)
    assert (len(found.lines), found.added, found.cut) == (workspace_diff.MOST_LINES, 10_000, True)
