"""A keep is verified against its log: damage anywhere is found and named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import lmdb
import pytest
from blake3 import blake3

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import INLINE_BYTES, Limits, Output
from sandkeep.sandboxes import Keep
from sandkeep.sandboxes.verification import verify_log

from ..packed import damage, lose, stored
from .support import Cli, take

TASK = "0123456789ab"


@pytest.fixture
def filled(keep: Keep, tmp_path: Path) -> Keep:
    """A keep whose log vouches for the output of a command and for a checkpoint, made without any engine."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_text("needle in a file")
    (tree / "sub" / "other").write_text("other")
    taken = take(tree, keep.blobs)
    large = keep.blobs.put(b"x" * (INLINE_BYTES + 1))
    events: list[Event] = [
        ev.TaskCreated("i1", "a title", None, "image"),
        ev.WorkspacePrepared("i1", None),
        ev.SandboxRequested("i2", "sha256:1", Limits(1, 1, 1, 1)),
        ev.SandboxStarted("i2", "c" * 64),
        ev.CommandRequested("i3", ("needle",), "/workspace", (), 1),
        ev.CommandExecuted("i3", 0, 1, False, Output(INLINE_BYTES + 1, None, large), Output(2, b"ok")),
        ev.CheckpointCreated("c" * 12, taken.digest, taken.files, taken.bytes, ""),
    ]
    for event in events:
        keep.log.append(f"task/{TASK}", [event], actor="tester")
    assert [task.id for task in keep.tasks()] == [TASK]
    return keep


def closed(keep: Keep) -> Path:
    keep.close()
    return keep.path


def test_a_keep_that_is_as_it_was_is_sound(filled: Keep, cli: Cli) -> None:
    said: list[str] = []
    report = filled.verify(said.append)
    assert (report.ok, report.damage, report.events, report.head) == (True, (), 8, 8)
    assert report.blobs == len(stored(filled.path / "blobs")) == 6
    assert said[0] == "verifying the log"
    closed(filled)
    answer = cli("verify", "--json")
    assert (answer.status, answer.json["ok"], answer.json["events"], answer.json["blobs"]) == (0, True, 8, 6)
    answer = cli("verify")
    assert (answer.status, answer.stderr) == (0, b"")
    assert answer.stdout == b"all is as it was: 8 events up to position 8, 0 published notes, 6 blobs\n"


@pytest.mark.parametrize(("needle", "position"), [(b"a title", 2), (b"needle", 6)], ids=["early", "late"])
def test_one_flipped_byte_of_a_copy_of_the_log_is_found_and_located(
    filled: Keep, cli: Cli, tmp_path: Path, needle: bytes, position: int
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    filled.log.snapshot(copy / "log")
    shutil.copy(filled.path / "keep.toml", copy)
    assert verify_log(copy, lambda words: None).ok
    content = bytearray((copy / "log" / "data.mdb").read_bytes())
    assert content.count(needle) == 1
    content[content.index(needle)] ^= 1
    (copy / "log" / "data.mdb").write_bytes(content)
    assert filled.verify().ok
    answer = cli("verify", "--keep", str(copy), "--json")
    assert (answer.status, answer.json["ok"], answer.json["blobs"]) == (1, False, 0)
    assert f"position {position}" in answer.json["damage"][0]
    answer = cli("verify", "--keep", str(copy))
    assert answer.status == 1
    first, *_, last = answer.stdout.decode().splitlines()
    assert first.startswith("damaged: log: ")
    assert f"position {position}" in first
    assert last.startswith("DAMAGED: ")


def test_a_log_whose_file_is_rubbish_is_reported_and_nobody_crashes(filled: Keep, cli: Cli) -> None:
    path = closed(filled)
    (path / "log" / "data.mdb").write_bytes(os.urandom(1 << 16))
    answer = cli("verify", "--json")
    assert (answer.status, answer.json["ok"]) == (1, False)
    assert answer.json["damage"]


def assert_affected(digest: str, lines: Sequence[str]) -> None:
    """What comes after the damage names the checkpoint, unless it was a command's output."""
    assert all(line.startswith("checkpoints: ") for line in lines)
    is_output = digest == blake3(b"x" * (INLINE_BYTES + 1)).hexdigest()
    assert any("c" * 12 in line for line in lines) is not is_output


@pytest.mark.parametrize("number", range(6))
def test_every_missing_blob_is_found(filled: Keep, cli: Cli, number: int) -> None:
    digest = stored(filled.path / "blobs")[number]
    lose(filled.path / "blobs", digest)
    assert not filled.verify().ok
    closed(filled)
    answer = cli("verify", "--json")
    assert (answer.status, answer.json["ok"]) == (1, False)
    first, *rest = answer.json["damage"]
    assert first.startswith("blobs: position ")
    assert f"no blob {digest}" in first
    assert_affected(digest, rest)


@pytest.mark.parametrize("number", range(6))
def test_every_damaged_blob_is_found(filled: Keep, number: int) -> None:
    assert filled.verify().ok
    digest = stored(filled.path / "blobs")[number]
    damaged = damage(filled.path / "blobs", digest)
    report = filled.verify()
    assert not report.ok
    named = {each for line in report.damage for each in damaged if f": blob {each} " in line}
    (root,) = [record.event.digest for record in filled.log.read() if isinstance(record.event, ev.CheckpointCreated)]
    # What a damaged manifest leads to cannot be found any more.
    assert named == ({root} if root in damaged else damaged)
    lines = [line for line in report.damage if line.startswith("blobs: ")]
    assert len(lines) == len(named)
    assert report.damage[: len(lines)] == tuple(lines)
    assert_affected(digest, report.damage[len(lines) :])


def test_a_blob_nobody_vouches_for_is_no_damage(filled: Keep) -> None:
    filled.blobs.put(b"stray")
    assert filled.verify().ok


def tamper(keep: Path) -> None:
    """Change the title of the task in the projections, which are a cache, behind everybody's back."""
    (generation,) = [path for path in (keep / "projections").iterdir() if path.is_dir()]
    with lmdb.open(str(generation), map_size=1 << 30) as env, env.begin(write=True) as txn:
        key = b"registry/task/" + bytes(8)
        value = txn.get(key)
        assert value is not None
        txn.put(key, bytes(value).replace(b"a title", b"A TITLE"))


def test_tampered_projections_are_found_and_a_replay_sets_them_right(filled: Keep, cli: Cli) -> None:
    path = closed(filled)
    tamper(path)
    answer = cli("verify", "--json")
    assert (answer.status, answer.json["ok"]) == (1, False)
    (line,) = answer.json["damage"]
    assert "'sandkeep replay' rebuilds them" in line
    assert cli("show-task", TASK, "--json").json["title"] == "A TITLE"
    first = cli("replay", "--json")
    assert (first.status, first.json["ok"]) == (1, False)
    second = cli("replay", "--json")
    assert (second.status, second.json["ok"]) == (0, True)
    assert second.json["before"] == second.json["digest"] == first.json["digest"] != first.json["before"]
    assert cli("show-task", TASK, "--json").json["title"] == "a title"
    assert cli("verify").status == 0


def test_a_replay_says_what_it_found_to_people(filled: Keep, cli: Cli) -> None:
    path = closed(filled)
    assert b"the same as before" in cli("replay").stdout
    tamper(path)
    answer = cli("replay")
    assert answer.status == 1
    assert b"NOT the" in answer.stdout
    shutil.rmtree(path / "projections")
    answer = cli("replay", "--json")
    assert (answer.status, answer.json["events"]) == (0, 8)
