"""Batches of blobs: what is in packs is what was put, or is found not to be, whatever becomes of the files."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import lmdb
import pytest
from blake3 import blake3

from sandkeep.events import BlobDamaged, BlobMissing, BlobStore, BlobsUnavailable, pack_frame, pack_sweep, packs
from sandkeep.events.batch import CHUNK_BYTES, LARGE_BYTES
from sandkeep.events.pack_frame import Kind
from sandkeep.events.pack_index import Entry

from ..packed import damage, flip, lose, objects, stored

MIB = 1 << 20


def put(store: BlobStore, *contents: bytes) -> list[str]:
    """Store these in one batch."""
    with store.batch() as batch:
        return [batch.put(content) for content in contents]


def put_again(store: BlobStore, *contents: bytes) -> list[str]:
    """Store these, also if what was relied on was swept meanwhile."""
    for _ in range(100):
        try:
            return put(store, *contents)
        except BlobMissing:
            pass
    raise AssertionError("what is relied on is gone each time")


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    for _ in range(6000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come to be true")


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def pack_files(root: Path) -> list[Path]:
    return sorted((root / "packs").glob("*.pack"))


def hex_of(content: bytes) -> str:
    return blake3(content).hexdigest()


def everything(_digest: str) -> bool:
    return True


def nothing(_digest: str) -> bool:
    return False


# ---- batches


def test_what_is_put_in_a_batch_is_got_once_it_is_committed(store: BlobStore, root: Path) -> None:
    contents = [b"", b"one", b"two" * 1000, noise(300_000)]
    with store.batch() as batch:
        digests = [batch.put(content) for content in contents]
        assert digests == [hex_of(content) for content in contents]
        assert not any(digest in store for digest in digests)
    assert [store.get(digest) for digest in digests] == contents
    assert [BlobStore(root).get(digest) for digest in digests] == contents
    assert all(digest in store for digest in digests)
    assert len(pack_files(root)) == 1
    assert (pack_files(root)[0].stat().st_mode & 0o777, (root / "packs").stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_batch_that_fails_stores_nothing(store: BlobStore, root: Path) -> None:
    kept = put(store, b"kept")
    size = pack_files(root)[0].stat().st_size

    def fail() -> None:
        with store.batch() as batch:
            batch.put(noise(300_000))
            wait_until(lambda: pack_files(root)[0].stat().st_size > size)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (stored(root), pack_files(root)[0].stat().st_size) == (kept, size)
    assert put(store, noise(300_000)) == [hex_of(noise(300_000))]


def test_a_batch_costs_one_sync_and_what_is_known_costs_none(
    store: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, b"the first makes the files")
    synced: list[str] = []
    fdatasync = os.fdatasync

    def noting(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", noting)
    monkeypatch.setattr(os, "fsync", noting)
    contents = [b"%d" % number for number in range(5000)]
    put(store, *contents)
    assert synced == [str(pack_files(root)[0])]
    before = pack_files(root)[0].read_bytes()
    put(store, *contents)
    assert len(synced) == 1
    assert pack_files(root)[0].read_bytes() == before


def test_equal_content_is_stored_once(store: BlobStore, root: Path) -> None:
    put(store, b"same", b"same")
    put(store, b"same", b"other")
    assert store.put(b"same") == hex_of(b"same")
    assert stored(root) == sorted([hex_of(b"same"), hex_of(b"other")])


def test_small_contents_are_compressed_together_and_manifests_apart(store: BlobStore, root: Path) -> None:
    contents = [b"all of these are nearly the same text, but for a number: %d" % number for number in range(2000)]
    with store.batch() as batch:
        for content in contents:
            batch.put(content)
        tree = batch.put(b"tree", tree=True)
    assert pack_files(root)[0].stat().st_size < len(b"".join(contents))
    lies = objects(root)
    assert {lies[hex_of(content)].kind for content in contents} == {Kind.CONTENT}
    assert lies[tree].kind is Kind.TREES


@pytest.mark.parametrize("size", [LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, 5 * MIB + 3], ids=str)
@pytest.mark.parametrize("way", ["put", "stream"])
def test_large_content_comes_back(store: BlobStore, root: Path, size: int, way: str) -> None:
    content = noise(size)
    with store.batch() as batch:
        if way == "put":
            digest = batch.put(content)
        else:
            digest, length = batch.put_stream(io.BytesIO(content))
            assert length == size
    assert digest == hex_of(content)
    assert b"".join(store.chunks(digest)) == content
    pieces = [len(piece) for piece in store.chunks(digest)]
    assert max(pieces) <= (CHUNK_BYTES[2] if size >= LARGE_BYTES else LARGE_BYTES)
    assert (objects(root)[digest].kind is Kind.RECIPES) == (size >= LARGE_BYTES)


@pytest.mark.parametrize("limit", [0, 1, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, 3 * MIB], ids=str)
def test_no_more_than_the_limit_is_taken(store: BlobStore, limit: int) -> None:
    content = noise(2 * MIB)
    source = io.BytesIO(content)
    with store.batch() as batch:
        digest, size = batch.put_stream(source, limit)
    assert size == min(limit, 2 * MIB) == source.tell()
    assert store.get(digest) == content[:size]


def test_a_change_within_large_content_costs_a_small_part_of_it(store: BlobStore, root: Path) -> None:
    content = bytearray(noise(16 * MIB))
    put(store, bytes(content))
    size = pack_files(root)[0].stat().st_size
    content[8 * MIB : 8 * MIB] = b"some bytes are put in between"
    (digest,) = put(store, bytes(content))
    assert pack_files(root)[0].stat().st_size - size < MIB
    assert store.get(digest) == bytes(content)


def test_what_lies_in_packs_is_adopted_by_another_store(store: BlobStore, tmp_path: Path) -> None:
    digests = put(store, b"one", noise(2 * MIB))
    other = BlobStore(tmp_path / "other")
    assert other.adopt(store, [*digests, "0" * 64]) == set(digests)
    assert [other.get(digest) for digest in digests] == [b"one", noise(2 * MIB)]


# ---- damage


def test_every_flipped_bit_of_a_pack_is_found_and_named(store: BlobStore, root: Path) -> None:
    contents = [b"one", b"another one", b"a third"]
    with store.batch() as batch:
        digests = {batch.put(content) for content in contents}
        digests.add(batch.put(b"tree", tree=True))
    (path,) = pack_files(root)
    whole = path.read_bytes()
    lies = objects(root)
    frames = {entry.offset for entry in lies.values()}
    assert list(store.verify()) == []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        hit = max((offset for offset in (*frames, len(whole)) if offset <= place), default=0)
        broken = set(store.verify())
        end = max(frames) + pack_frame_size(path, max(frames), whole)
        assert broken == {each for each in digests if place < end and lies[each].offset == hit}, place
        for digest in broken:
            with pytest.raises(BlobDamaged, match=digest):
                store.get(digest)


def pack_frame_size(path: Path, offset: int, whole: bytes) -> int:
    """How long the frame at `offset` was before anything was damaged."""
    copy = path.with_suffix(".copy")
    copy.write_bytes(whole)
    with packs.opened(copy) as file:
        return pack_frame.read_header(file, bytes.fromhex(path.stem), offset).size


@pytest.mark.parametrize("length", [0, 1, 50, 200], ids=str)
def test_a_pack_that_was_cut_is_noticed_when_it_is_opened_and_stored_again(root: Path, length: int) -> None:
    (digest,) = put(BlobStore(root), noise(1000))
    os.truncate(pack_files(root)[0], length)
    with pytest.raises((BlobDamaged, BlobMissing), match=digest):
        BlobStore(root).get(digest)
    assert_put_again(root, noise(1000))


def test_a_pack_that_was_cut_is_not_appended_to(store: BlobStore, root: Path) -> None:
    put(store, noise(5000))
    (cut,) = pack_files(root)
    os.truncate(cut, 1000)
    (digest,) = put(store, b"more")
    assert (cut.stat().st_size, len(pack_files(root))) == (1000, 2)
    assert_put_again(root, noise(5000))
    assert [store.get(digest), store.get(hex_of(noise(5000)))] == [b"more", noise(5000)]


def test_a_pack_that_is_gone_is_noticed_and_its_content_stored_again(root: Path) -> None:
    (digest,) = put(BlobStore(root), b"content")
    pack_files(root)[0].unlink()
    with pytest.raises(BlobMissing, match=digest):
        BlobStore(root).get(digest)
    assert_put_again(root, b"content")


def assert_put_again(root: Path, content: bytes) -> None:
    """A process that comes anew stores it again."""
    code = (
        "import sys; from pathlib import Path; from sandkeep.events import BlobStore;"
        "store = BlobStore(Path(sys.argv[1])); content = sys.stdin.buffer.read()\n"
        "with store.batch() as batch: digest = batch.put(content)\n"
        "assert store.get(digest) == content"
    )
    subprocess.run([sys.executable, "-P", "-c", code, root], input=content, check=True)


def test_a_sample_finds_damage_in_the_long_run(store: BlobStore, root: Path) -> None:
    digests = put(store, b"one", noise(400_000))
    damage(root, digests[1])
    assert {digest for _ in range(200) for digest in store.verify(0.2)} >= {digests[1]}
    assert list(store.verify(0.0)) == []


def test_large_content_that_lacks_a_part_is_named(store: BlobStore, root: Path) -> None:
    (digest,) = put(store, noise(2 * MIB))
    parts = [each for each in stored(root) if each != digest]
    lose(root, parts[0])
    with pytest.raises(BlobMissing, match=f"{digest} lacks its part {parts[0]}"):
        store.get(digest)
    damage(root, parts[1])
    assert digest in set(store.verify())


def test_a_recipe_for_something_else_is_damage(store: BlobStore, root: Path) -> None:
    (part,) = put(store, b"part")
    with store.batch() as batch:
        batch.move(blake3(b"whole").digest(), Kind.RECIPES, bytes.fromhex(part) * 2)
    with pytest.raises(BlobDamaged, match=f"{hex_of(b'whole')} does not match its digest"):
        store.get(hex_of(b"whole"))
    assert list(store.verify()) == [hex_of(b"whole")]


def test_what_looks_like_frames_of_another_pack_is_none(store: BlobStore, root: Path) -> None:
    """What a sandbox writes may end up in a pack as it is, if it does not compress, and a damaged pack is searched."""
    (first,) = put(store, b"first")
    (path,) = pack_files(root)
    forged = pack_frame.encode(b"x" * 16, Kind.CONTENT, [(blake3(b"true").digest(), b"false")])
    forged += pack_frame.encode(b"x" * 16, Kind.END, ())
    path.write_bytes(path.read_bytes() + b"the head of a frame that was damaged" + forged)
    drop_index(root)
    assert stored(root) == [first]
    put(store, b"more")
    assert forged not in path.read_bytes()


# ---- the index is a cache


def drop_index(root: Path) -> None:
    shutil.rmtree(root / "packs" / "index")


@pytest.mark.parametrize("how", ["gone", "cut", "rubbish", "empty"])
def test_an_index_that_cannot_be_used_is_made_anew_from_the_packs(root: Path, how: str) -> None:
    contents = [b"one", b"two", noise(3 * MIB)]
    code = (
        "import sys; from pathlib import Path; from sandkeep.events import BlobStore\n"
        "for content in (b'one', b'two'):\n"
        "    with BlobStore(Path(sys.argv[1])).batch() as batch: batch.put(content)"
    )
    subprocess.run([sys.executable, "-P", "-c", code, root], check=True)
    data = root / "packs" / "index" / "data.mdb"
    match how:
        case "gone":
            drop_index(root)
        case "cut":
            os.truncate(data, 8192)
        case "rubbish":
            data.write_bytes(os.urandom(1 << 16))
        case _:
            data.write_bytes(b"")
    store = BlobStore(root)
    assert [store.get(hex_of(content)) for content in contents[:2]] == contents[:2]
    put(store, contents[2])
    drop_index(root)
    assert [store.get(hex_of(content)) for content in contents] == contents
    assert not list((root / "packs").glob(".*"))


def test_an_index_that_is_made_anew_lacks_only_what_is_damaged(store: BlobStore, root: Path) -> None:
    digests = [put(store, noise(1000, number))[0] for number in range(6)]
    damage(root, digests[1])
    flip(pack_files(root)[0], objects(root)[digests[3]].offset)
    drop_index(root)
    assert set(stored(root)) == {digests[0], digests[2], digests[4], digests[5]}
    put(store, noise(1000, 1), noise(1000, 3))
    assert [store.get(digest) for digest in digests] == [noise(1000, number) for number in range(6)]


@pytest.mark.parametrize("how", ["index", "pack"])
def test_large_content_that_lost_a_part_with_the_index_or_a_pack_is_stored_again(root: Path, how: str) -> None:
    content = noise(2 * MIB)
    store = BlobStore(root)
    put(store, content[: 3 * MIB // 2])
    (first,) = pack_files(root)
    with packs.opened(first, os.O_RDWR) as file:
        assert packs.locked(file, first)
        (digest,) = put(store, content)
    lies = objects(root)
    part = next(each for each, entry in lies.items() if entry.kind is Kind.CONTENT and entry.pack.hex() == first.stem)
    assert lies[digest].pack.hex() != first.stem
    if how == "index":
        damage(root, part)
        drop_index(root)
    else:
        first.unlink()
    assert_put_again(root, content)


def test_what_was_written_and_not_committed_is_cut_off_by_the_next_writer(store: BlobStore, root: Path) -> None:
    put(store, b"kept")
    (path,) = pack_files(root)
    whole = path.read_bytes()
    half = pack_frame.encode(bytes.fromhex(path.stem), Kind.CONTENT, [(blake3(b"half").digest(), b"half")])
    path.write_bytes(whole + half + half[:70])
    assert hex_of(b"half") not in BlobStore(root)
    put(store, b"more")
    assert stored(root) == sorted([hex_of(b"kept"), hex_of(b"more")])
    assert half not in path.read_bytes()


def test_what_was_committed_and_not_yet_indexed_is_found_by_the_next_writer(store: BlobStore, root: Path) -> None:
    put(store, b"kept")
    (path,) = pack_files(root)
    pack = bytes.fromhex(path.stem)
    batch = pack_frame.encode(pack, Kind.CONTENT, [(blake3(b"late").digest(), b"late")])
    batch += pack_frame.encode(pack, Kind.END, ())
    path.write_bytes(path.read_bytes() + batch)
    put(store, b"more")
    assert store.get(hex_of(b"late")) == b"late"


def test_an_index_that_fails_says_so_and_its_batch_is_found_later(
    store: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, b"kept")
    with monkeypatch.context() as patch:
        index = packs.Packs(root / "packs").index()

        def full(*_: object, **__: object) -> None:
            raise BlobsUnavailable("the index of the packs cannot be used: full")

        patch.setattr(type(index), "commit", full)
        with pytest.raises(BlobsUnavailable):
            put(store, b"late")
    assert hex_of(b"late") not in store
    put(store, b"more")
    assert store.get(hex_of(b"late")) == b"late"


def test_lmdb_failing_is_told_as_such(store: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise lmdb.DiskError("No space left on device")

    monkeypatch.setattr("sandkeep.events.pack_index.Extent", failing)
    with pytest.raises(BlobsUnavailable, match="No space left"):
        put(store, b"content")


def test_an_entry_that_is_none_is_told_as_such(store: BlobStore, root: Path) -> None:
    (digest,) = put(store, b"content")
    index = packs.Packs(root / "packs").index()
    with index._env.begin(write=True, db=index._objects) as txn:
        txn.put(bytes.fromhex(digest), b"no entry")
    with pytest.raises(BlobsUnavailable, match="remove the folder blobs/packs/index"):
        store.get(digest)
    drop_index(root)
    assert store.get(digest) == b"content"


# ---- sweeping

HOUR = 3600.0


def test_a_sweep_condemns_first_and_removes_when_the_grace_is_over(
    store: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, garbage = put(store, b"kept" * 10, b"garbage" * 1000)
    assert store.sweep({kept}.__contains__, HOUR) == (0, 0)
    assert store.get(garbage) == b"garbage" * 1000
    later(monkeypatch, HOUR / 2)
    assert store.sweep({kept}.__contains__, HOUR) == (0, 0)
    later(monkeypatch, 1.1 * HOUR)
    (before,) = pack_files(root)
    removed, _ = store.sweep({kept}.__contains__, HOUR)
    assert (removed, stored(root), before.exists()) == (1, [kept], False)
    assert store.get(kept) == b"kept" * 10
    drop_index(root)
    assert stored(root) == [kept]


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the clock of the sweep be that much ahead."""
    now = time.time_ns()
    monkeypatch.setattr(pack_sweep, "time", SimpleNamespace(time_ns=lambda: now + int(seconds * 1e9)))


def test_what_is_wanted_again_is_condemned_no_more(
    store: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (digest,) = put(store, b"content")
    store.sweep(nothing, HOUR)
    store.sweep(everything, HOUR)
    later(monkeypatch, 2 * HOUR)
    assert store.sweep(nothing, HOUR) == (0, 0)
    assert digest in store


@pytest.mark.parametrize("way", ["batch", "file"])
def test_what_is_condemned_is_stored_anew_by_whoever_needs_it(
    store: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    (digest,) = put(store, b"content")
    store.sweep(nothing, HOUR)
    assert put(store, b"content") == [digest] if way == "batch" else store.put(b"content") == digest
    later(monkeypatch, 1.1 * HOUR)
    store.sweep(nothing, HOUR)
    assert store.get(digest) == b"content"


def test_what_a_batch_relies_on_is_condemned_no_more(
    store: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (digest,) = put(store, b"content")
    with store.batch() as batch:
        batch.put(b"content")
        store.sweep(nothing, HOUR)
        assert objects(root)[digest].condemned
    assert not objects(root)[digest].condemned
    later(monkeypatch, 1.1 * HOUR)
    assert store.sweep(nothing, HOUR) == (0, 0)


@pytest.mark.parametrize("more", [(), (b"more",)], ids=["nothing else", "more"])
def test_a_batch_is_not_committed_if_what_it_relies_on_was_removed(
    store: BlobStore, root: Path, more: tuple[bytes, ...]
) -> None:
    digest, _ = put(store, b"content", b"other")

    def overtaken() -> None:
        with store.batch() as batch:
            for content in (b"content", *more):
                batch.put(content)
            lose(root, digest)

    with pytest.raises(BlobMissing, match=f"{digest} was removed while a batch relied on it"):
        overtaken()
    assert stored(root) == [hex_of(b"other")]
    assert put(store, b"content") == [digest]
    assert store.get(digest) == b"content"


def test_a_batch_whose_index_is_made_anew_meanwhile_is_committed_to_the_new_one(store: BlobStore, root: Path) -> None:
    put(store, b"known")
    with store.batch() as batch:
        batch.put(b"known")
        batch.put(noise(300_000))
        drop_index(root)
        BlobStore(root).epoch()
        batch.put(b"new")
    assert {hex_of(each) for each in (b"known", b"new", noise(300_000))} == set(stored(root))


def test_a_disk_that_fails_while_frames_are_written_fails_the_batch(
    store: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = put(store, b"kept")
    size = pack_files(root)[0].stat().st_size
    pwrite, failed = os.pwrite, list[int]()

    def failing(file: int, data: bytes, offset: int) -> int:
        if offset > size + 1_000_000 and not failed:
            failed.append(offset)
            raise OSError(errno.EIO, "Input/output error")
        return pwrite(file, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(OSError, match="Input/output"):
        put(store, *(noise(300_000, seed) for seed in range(40)))
    monkeypatch.undo()
    assert (stored(root), pack_files(root)[0].stat().st_size) == (kept, size)
    assert not [each for each in threading.enumerate() if each.name == "sandkeep-pack"]


def test_a_process_that_was_forked_takes_nothing_back_from_a_batch(store: BlobStore, root: Path) -> None:
    with store.batch() as batch:
        batch.put(noise(300_000))
        wait_until(lambda: pack_files(root)[0].stat().st_size > 300_000)
        child = os.fork()
        if child == 0:
            batch.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        batch.put(b"more")
    assert [store.get(hex_of(each)) for each in (b"more", noise(300_000))] == [b"more", noise(300_000)]


def test_the_parts_of_large_content_stay_as_long_as_it_does(store: BlobStore, root: Path) -> None:
    one, two = noise(3 * MIB), noise(3 * MIB) + noise(2 * MIB, 1)
    digests = put(store, one, two, noise(7 * MIB, 2))
    count = len(stored(root))
    removed, freed = store.sweep({digests[1]}.__contains__, -1)
    assert 0 < removed < count
    assert freed > 3 * MIB
    assert store.get(digests[1]) == two
    assert store.sweep({digests[1]}.__contains__, -1) == (0, 0)
    assert store.sweep(nothing, -1)[0] == len([digests[1]]) + count - removed - 1
    assert (stored(root), pack_files(root)) == ([], [])


def test_a_reader_goes_on_while_its_pack_is_written_anew(store: BlobStore, root: Path) -> None:
    content = noise(3 * MIB)
    kept, _ = put(store, content, noise(8 * MIB, 1))
    reading = BlobStore(root).chunks(kept)
    first = next(reading)
    (before,) = pack_files(root)
    assert store.sweep({kept}.__contains__, -1)[0] > 1
    assert not before.exists()
    assert first + b"".join(reading) == content


def test_what_a_sweep_removes_while_another_moves_it_stays_removed(
    store: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone, _ = put(store, b"kept", b"gone", noise(1000))
    read = packs.Packs.read

    def removed_meanwhile(self: packs.Packs, digest: bytes, entry: Entry) -> bytes:
        if gone in store and digest.hex() in (kept, gone):
            lose(root, gone)
        return read(self, digest, entry)

    monkeypatch.setattr(packs.Packs, "read", removed_meanwhile)
    assert store.sweep({kept, gone}.__contains__, -1)[0] == 1
    assert stored(root) == [kept]


def test_a_damaged_pack_is_left_as_it_is(store: BlobStore, root: Path) -> None:
    kept, other, _ = put(store, noise(300_000), noise(300_000, 1), noise(900_000, 2))
    damage(root, kept)
    (before,) = pack_files(root)
    assert store.sweep({kept, other}.__contains__, -1) == (1, 0)
    assert pack_files(root) == [before]
    assert store.get(other) == noise(300_000, 1)


def test_nothing_is_swept_while_it_cannot_be_told_what_wanted_content_consists_of(store: BlobStore, root: Path) -> None:
    digest, garbage = put(store, noise(3 * MIB), b"garbage")
    damage(root, digest)
    with pytest.raises(BlobDamaged, match=digest):
        store.sweep({digest}.__contains__, -1)
    assert garbage in store
    store.sweep(nothing, -1)
    assert stored(root) == []


# ---- several writers


def test_writers_at_once_have_a_pack_each_and_leave_it_to_the_next(store: BlobStore, root: Path) -> None:
    with store.batch() as one, store.batch() as two:
        one.put(noise(300_000))
        two.put(noise(300_000, 1))
        assert len(pack_files(root)) == 2
    put(store, b"later")
    put(store, b"and later")
    assert len(pack_files(root)) == 2
    assert len(stored(root)) == 4


def test_a_pack_that_another_wrote_to_as_it_was_made_is_gone_on_with(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, others = os.open, [noise(5000, 1)]

    def overtaken(path: str | Path, flags: int, *rest: int, **options: int) -> int:
        made = make(path, flags, *rest, **options)
        if flags & os.O_EXCL and others and str(path).endswith(".pack"):
            put(BlobStore(root), others.pop())
        return made

    monkeypatch.setattr(os, "open", overtaken)
    put(BlobStore(root), noise(3000))
    assert len(pack_files(root)) == 1
    assert [BlobStore(root).get(hex_of(each)) for each in (noise(3000), noise(5000, 1))] == [
        noise(3000),
        noise(5000, 1),
    ]


def test_a_full_pack_is_not_appended_to(store: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "MAX_PACK_BYTES", 1000)
    put(store, noise(2000))
    put(store, b"more")
    put(store, b"even more")
    assert len(pack_files(root)) == 2


def test_threads_write_and_read_and_sweep_at_once(root: Path) -> None:
    wanted: set[str] = set()
    done = threading.Event()

    def write(number: int) -> int:
        store = BlobStore(root)
        for step in range(12):
            contents = [noise(3000, 1000 * number + 10 * step + each) for each in range(6)]
            wanted.update(map(hex_of, contents[:2]))
            digests = put_again(store, *contents, noise(1000, step))
            assert [store.get(digest) for digest in digests[:2]] == contents[:2]
        return number

    def sweep() -> int:
        swept = 0
        while not done.is_set():
            swept += BlobStore(root).sweep(lambda digest: digest in wanted, 0)[0]
        return swept

    with ThreadPoolExecutor(5) as pool:
        sweeping = pool.submit(sweep)
        try:
            for each in [pool.submit(write, number) for number in range(4)]:
                each.result()
        finally:
            done.set()
        assert sweeping.result() > 0
    store = BlobStore(root)
    assert all(blake3(store.get(digest)).hexdigest() == digest for digest in wanted)
    assert list(store.verify()) == []


def test_a_process_that_was_forked_opens_its_own_index(store: BlobStore, root: Path) -> None:
    (digest,) = put(store, b"content")
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        ok = False
        try:
            ok = store.get(digest) == b"content" and put(store, b"child's") == [hex_of(b"child's")]
        finally:
            os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.get(hex_of(b"child's")) == b"child's"


def test_an_index_that_another_process_made_anew_is_taken_up(store: BlobStore, root: Path) -> None:
    put(store, b"before")
    drop_index(root)
    assert_put_again(root, b"meanwhile")
    assert store.get(hex_of(b"meanwhile")) == b"meanwhile"
    put(store, b"after")
    assert len(stored(root)) == 3
