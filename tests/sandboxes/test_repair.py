"""Damage in checkpoints: it is named with the paths that it affects, and repaired from whatever copy there is."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from blake3 import blake3

from sandkeep.events import BadInput, BlobMissing, BlobStore
from sandkeep.sandboxes import Keep, Task, care, repair
from sandkeep.sandboxes.manifest import load

from ..packed import damage, flip, lose, objects
from .support import Cli

LARGE = 3 << 20


def noise(seed: int, size: int = 30_000) -> bytes:
    return random.Random(seed).randbytes(size)


def digest_of(content: bytes) -> str:
    return blake3(content).hexdigest()


@pytest.fixture
def recorded(keep: Keep) -> Task:
    """A task with one checkpoint: files `0` to `5` in `inner`, and one that is large."""
    made = keep.create_task("a test")
    (made.workspace / "inner").mkdir()
    for number in range(6):
        (made.workspace / "inner" / str(number)).write_bytes(noise(number))
    (made.workspace / "large").write_bytes(noise(9, LARGE))
    made.checkpoint("first")
    return made


def empty(task: Task) -> None:
    """Let the workspace hold nothing any more."""
    shutil.rmtree(task.workspace / "inner")
    (task.workspace / "large").unlink()


def test_damage_is_named_with_the_paths_that_it_affects(keep: Keep, recorded: Task) -> None:
    (first,) = recorded.checkpoints()
    (recorded.workspace / "inner" / "0").write_bytes(b"another")
    second = recorded.checkpoint("second")
    lose(keep.path / "blobs", digest_of(noise(0)))
    lose(keep.path / "blobs", digest_of(noise(1)))
    found = [line for line in keep.verify().damage if line.startswith("checkpoints: ")]
    assert sorted(found[:-1]) == sorted(
        f"checkpoints: {each} of task {recorded.id}: 'inner/{name}' cannot be restored"
        for each, name in [(first.id, 0), (first.id, 1), (second.id, 1)]
    )
    assert "repair-checkpoints" in found[-1]


def test_a_folder_whose_manifest_is_gone_is_named_as_a_whole(keep: Keep, recorded: Task) -> None:
    (first,) = recorded.checkpoints()
    lose(keep.path / "blobs", load(first.digest, keep.blobs)[b"inner"].content)
    words = f"checkpoints: {first.id} of task {recorded.id}: 'inner/' cannot be restored"
    assert words in keep.verify().damage


def test_what_lies_beside_the_damage_in_a_frame_is_read_from_it(keep: Keep, recorded: Task) -> None:
    empty(recorded)
    blobs = keep.path / "blobs"
    lies = objects(blobs)
    frame = lies[digest_of(noise(0))]
    struck = damage(blobs, digest_of(noise(0)))
    found = repair.repair(keep)
    assert set(found.repaired) | set(found.missing) >= struck & {digest_of(noise(each)) for each in range(6)}
    assert len(found.missing) == 1
    assert {each.digest for each in found.affected} == set(found.missing)
    moved = objects(blobs)[found.repaired[0]]
    assert (moved.pack, moved.offset) != (frame.pack, frame.offset)


@pytest.mark.parametrize("how", ["pack", "index", "frames"])
def test_what_the_workspace_still_holds_comes_from_there(keep: Keep, recorded: Task, how: str) -> None:
    blobs = keep.path / "blobs"
    packs = sorted((blobs / "packs").glob("*.pack"))
    match how:
        case "pack":
            packs[0].unlink()
            keep.blobs.forget()
        case "index":
            for number in range(6):
                lose(blobs, digest_of(noise(number)))
        case _:
            for place in range(300, packs[0].stat().st_size, 50_000):
                flip(packs[0], place)
    assert not keep.verify().ok
    found = repair.repair(keep)
    assert (found.missing, found.affected) == ((), ())
    assert len(found.repaired) >= 6
    assert keep.verify().ok
    assert keep.blobs.get(digest_of(noise(9, LARGE))) == noise(9, LARGE)
    assert repair.repair(keep).repaired == ()


@pytest.mark.parametrize("source", ["keep", "blobs", "bundle", "damaged keep and bundle"])
def test_what_another_copy_holds_comes_from_there(keep: Keep, recorded: Task, tmp_path: Path, source: str) -> None:
    (first,) = recorded.checkpoints()
    sources = []
    if "keep" in source or source == "blobs":
        shutil.copytree(keep.path / "blobs", tmp_path / "copy" / "blobs")
        sources.append(tmp_path / "copy" / ("blobs" if source == "blobs" else ""))
    if "bundle" in source:
        keep.export_audit(tmp_path / "bundle")
        sources.append(tmp_path / "bundle")
    if "damaged" in source:
        damage(tmp_path / "copy" / "blobs", digest_of(noise(0)))
    empty(recorded)
    (pack,) = (keep.path / "blobs" / "packs").glob("*.pack")
    os.truncate(pack, 0)
    shutil.rmtree(keep.path / "blobs" / "packs" / "index")
    found = repair.repair(keep, sources)
    assert (found.missing, found.affected) == ((), ())
    assert first.digest in found.repaired
    assert keep.verify().ok
    recorded.restore_checkpoint(first.id)
    assert (recorded.workspace / "large").read_bytes() == noise(9, LARGE)
    assert (recorded.workspace / "inner" / "3").read_bytes() == noise(3)


def test_what_nobody_has_is_told(keep: Keep, recorded: Task, tmp_path: Path, cli: Cli) -> None:
    (first,) = recorded.checkpoints()
    lose(keep.path / "blobs", digest_of(noise(2)))
    (recorded.workspace / "inner" / "2").write_bytes(b"another")
    keep.close()
    answer = cli("repair-checkpoints")
    assert answer.status == 1
    assert answer.stdout.decode() == (
        f"missing: 'inner/2' of checkpoint {first.id} of task {recorded.id}\n0 blobs were brought back, 1 are missing\n"
    )
    (recorded.workspace / "inner" / "2").write_bytes(noise(2))
    answer = cli("repair-checkpoints", "--json")
    assert (answer.status, answer.json) == (0, {"repaired": [digest_of(noise(2))], "missing": [], "affected": []})


def test_a_source_that_is_none_is_refused(keep: Keep, recorded: Task, tmp_path: Path) -> None:
    lose(keep.path / "blobs", digest_of(noise(0)))
    for source in (tmp_path, recorded.workspace / "inner" / "0"):
        with pytest.raises(BadInput):
            repair.repair(keep, [source])


def test_a_blob_by_itself_that_is_damaged_is_repaired(keep: Keep, recorded: Task, tmp_path: Path) -> None:
    (recorded.workspace / "inner" / "7").write_bytes(b"what a command wrote")
    digest = keep.blobs.put(b"what a command wrote")
    flip(keep.path / "blobs" / digest[:2] / digest[2:], -1)
    keep.blobs.put(b"nobody wants this")
    recorded.checkpoint()
    assert list(keep.blobs.verify()) == [digest]
    assert repair.repair(keep).repaired == (digest,)
    assert list(keep.blobs.verify()) == []
    assert keep.blobs.get(digest) == b"what a command wrote"


def test_scrubbing_lets_the_next_checkpoint_store_what_was_damaged(
    keep: Keep, recorded: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(care, "SAMPLE", 1.0)
    assert care.scrub(keep) == []
    first = recorded.checkpoint("nothing has changed")
    struck = damage(keep.path / "blobs", digest_of(noise(0)))
    told = care.scrub(keep)
    (lost,) = (each for each in struck if each not in keep.blobs)
    assert told[0].endswith(f"{len(struck)} of them could be stored anew")  # the large file as well, but one of these
    assert any(f"checkpoints: {first.id} of task {recorded.id}" in line for line in told)
    with pytest.raises(BlobMissing):
        keep.blobs.get(lost)
    assert recorded.checkpoint().digest == first.digest
    assert keep.verify().ok
    assert care.scrub(keep) == []


def test_large_content_of_which_a_part_is_damaged_is_stored_again(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with store.batch() as batch:
        digest = batch.put(noise(9, LARGE))
        other = batch.put(b"other")
    part = next(each for each, entry in objects(tmp_path).items() if entry.kind == 1 and each != other)
    lost = store.discard(damage(tmp_path, part))
    assert digest in lost
    left = lost - store.salvage(lost)
    assert digest in left
    with store.batch() as batch:
        assert batch.put(noise(9, LARGE)) == digest
    assert store.get(digest) == noise(9, LARGE)
    assert list(store.verify()) == []


def test_the_steward_compresses_harder_what_has_lain_for_a_while(
    keep: Keep, recorded: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert care.archive(keep) == []
    monkeypatch.setattr(care, "AGE_SECONDS", -1.0)
    monkeypatch.setattr(care, "PART_BYTES", 1 << 20)
    told = [care.archive(keep) for _ in range(8)]
    assert [lines for lines in told if lines] == [["compressed 1 packs harder"]]
    assert keep.verify().ok
