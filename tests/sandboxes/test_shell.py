"""Commands without the agent: what a command writes, and what it does to the files it writes to."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep.events import BlobStore
from sandkeep.events.catalogue import INLINE_BYTES, Output
from sandkeep.sandboxes import spool, workspace
from sandkeep.sandboxes.container import SPOOL
from sandkeep.sandboxes.execution import content
from sandkeep.sandboxes.secrets import Secrets
from sandkeep.sandboxes.shell import NO_FOLDER, NOT_FOUND, ShellSpool

NONE = Secrets({})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


@pytest.fixture
def made(folder: Path) -> Iterator[ShellSpool]:
    with ShellSpool(folder, "c") as spool:
        yield spool


def run(made: ShellSpool, folder: Path, *argv: str, cwd: str = "/", **environment: str) -> int:
    """Run `argv` as a sandbox does, on this machine."""
    command = [word.replace(str(SPOOL), str(folder)) for word in made.argv(argv, cwd)]
    return subprocess.run(command, env=os.environ | environment, check=False).returncode


def outputs(made: ShellSpool, blobs: BlobStore) -> tuple[Output, Output]:
    return made.output("out", blobs, NONE), made.output("err", blobs, NONE)


def test_streams_are_kept_apart(made: ShellSpool, folder: Path, blobs: BlobStore) -> None:
    assert run(made, folder, "sh", "-c", "echo out; echo err >&2; exit 3") == 3
    assert outputs(made, blobs) == (Output(size=4, data=b"out\n"), Output(size=4, data=b"err\n"))
    assert made.note() == b""


def test_words_are_passed_as_they_are(made: ShellSpool, folder: Path, blobs: BlobStore) -> None:
    words = ("", " ", "$HOME", "`id`", "a\nb", "-n", "'", "ünï", "*")
    assert run(made, folder, "printf", "%s\\0", *words) == 0
    assert made.output("out", blobs, NONE).data == b"".join(word.encode() + b"\0" for word in words)


def test_there_is_nothing_to_read(made: ShellSpool, folder: Path, blobs: BlobStore) -> None:
    assert run(made, folder, "cat") == 0
    assert outputs(made, blobs) == (Output(size=0, data=b""), Output(size=0, data=b""))


@pytest.mark.parametrize("program", ["nothing-of-that-name", "/bin/nothing", "./nothing", "cd /"])
def test_a_program_that_is_not_there_is_noted(made: ShellSpool, folder: Path, blobs: BlobStore, program: str) -> None:
    assert run(made, folder, program) == 127
    assert made.note() == NOT_FOUND
    assert outputs(made, blobs) == (Output(size=0, data=b""), Output(size=0, data=b""))


def test_the_search_path_is_that_of_the_command(made: ShellSpool, folder: Path) -> None:
    assert run(made, folder, "env", PATH="/nonexistent") == 127
    assert made.note() == NOT_FOUND


def test_a_folder_that_is_not_there_is_noted(made: ShellSpool, folder: Path) -> None:
    assert run(made, folder, "true", cwd="/nonexistent") == 127
    assert made.note() == NO_FOLDER


@pytest.mark.parametrize("size", [INLINE_BYTES, INLINE_BYTES + 1])
def test_output_is_a_blob_from_a_certain_size(made: ShellSpool, folder: Path, blobs: BlobStore, size: int) -> None:
    assert run(made, folder, "sh", "-c", f"head -c {size} /dev/zero") == 0
    output = made.output("out", blobs, NONE)
    assert (output.size, output.truncated) == (size, False)
    assert (output.blob is not None) == (size > INLINE_BYTES)
    assert (output.data is None) == (size > INLINE_BYTES)
    assert content(output, blobs) == bytes(size)


def test_what_is_beyond_the_most_is_cut_off(
    made: ShellSpool, folder: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "OUTPUT_BYTES", 20_000)
    assert run(made, folder, "sh", "-c", "head -c 20000 /dev/zero") == 0
    assert not made.full()
    assert not made.output("out", blobs, NONE).truncated
    assert run(made, folder, "sh", "-c", "echo more") == 0
    assert made.full()
    output = made.output("out", blobs, NONE)
    assert (output.size, output.truncated, content(output, blobs)) == (20_000, True, bytes(20_000))


def test_what_is_new_is_given_once(made: ShellSpool, folder: Path) -> None:
    run(made, folder, "sh", "-c", "printf one; printf two >&2")
    assert (made.fresh("out"), made.fresh("err"), made.fresh("out")) == (b"one", b"two", b"")
    run(made, folder, "printf", "more")
    assert made.fresh("out") == b"more"


def test_what_the_command_does_to_its_files_cannot_make_us_read_others(
    made: ShellSpool, folder: Path, tmp_path: Path, blobs: BlobStore
) -> None:
    (tmp_path / "secret").write_text("secret")
    plant = "echo mine; for f in c.out c.err c.note; do rm $f; ln -s ../secret $f; done; echo more"
    assert run(made, folder, "sh", "-c", plant, cwd=str(folder)) == 0
    assert outputs(made, blobs) == (Output(size=10, data=b"mine\nmore\n"), Output(size=0, data=b""))
    assert made.note() == b""


def test_a_command_cannot_claim_that_it_never_ran(made: ShellSpool, folder: Path, blobs: BlobStore) -> None:
    assert run(made, folder, "sh", "-c", "echo done; echo x command-not-found >c.note", cwd=str(folder)) == 0
    assert made.note() == b""
    assert made.output("out", blobs, NONE).data == b"done\n"


@pytest.mark.parametrize("act", ["rm", "mkdir", "link"])
def test_nothing_is_left_whatever_took_the_place_of_the_files(folder: Path, tmp_path: Path, act: str) -> None:
    (tmp_path / "other").touch()
    with ShellSpool(folder, "c"):
        (folder / "c.out").unlink()
        if act == "mkdir":
            (folder / "c.out").mkdir()
        elif act == "link":
            (folder / "c.out").symlink_to(tmp_path / "other")
    assert os.listdir(folder) == (["c.out"] if act == "mkdir" else [])
    assert (tmp_path / "other").exists()


def test_files_planted_before_the_command_are_not_used(folder: Path, tmp_path: Path) -> None:
    (folder / "c.err").symlink_to(tmp_path / "other")
    with pytest.raises(FileExistsError):
        ShellSpool(folder, "c")
    assert not (tmp_path / "other").exists()


def test_the_files_belong_to_who_runs_commands_and_to_nobody_else(made: ShellSpool, folder: Path) -> None:
    found = [path.stat() for path in folder.iterdir()]
    assert len(found) == 3
    assert {(status.st_uid, status.st_gid) for status in found} == {workspace.owner()}
    assert {status.st_mode & 0o777 for status in found} == {0o600}
