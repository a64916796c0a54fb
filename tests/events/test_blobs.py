from __future__ import annotations

import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import BadInput, BlobDamaged, BlobMissing, BlobStore

from .support import finish, go, worker

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1 << 20


class Source:
    """A stream of `size` bytes, that never gives more than asked and may fail at its end."""

    def __init__(self, size: int, error: Exception | None = None) -> None:
        self.left = size
        self.error = error
        self.most = 0

    def read(self, size: int) -> bytes:
        self.most = max(self.most, size)
        if not self.left and self.error is not None:
            raise self.error
        count = min(size, self.left)
        self.left -= count
        return bytes(count)


def stream(source: Source) -> BinaryIO:
    return cast(BinaryIO, source)


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def path_of(root: Path, digest: str) -> Path:
    return root / digest[:2] / digest[2:]


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_what_is_put_is_got(contents: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = BlobStore(Path(folder))
        digests = [store.put(content) for content in contents]
        assert digests == [blake3(content).hexdigest() for content in contents]
        assert [store.get(digest) for digest in digests] == contents
        assert all(digest in store for digest in digests)
        assert len(files(Path(folder))) == len(set(contents))


def test_a_blob_lies_under_its_digest_readable_by_its_owner_only(store: BlobStore, root: Path) -> None:
    digest = store.put(b"text" * 1000)
    [file] = files(root)
    assert file == path_of(root, digest)
    assert (file.stat().st_mode & 0o777, root.stat().st_mode & 0o777) == (0o600, 0o700)
    assert zstd.decompress(file.read_bytes()) == b"text" * 1000
    assert file.stat().st_size < 200


def test_putting_again_does_not_write_again(store: BlobStore, root: Path) -> None:
    digest = store.put(b"x")
    before = path_of(root, digest).stat().st_ino
    assert (store.put(b"x"), store.put_stream(io.BytesIO(b"x"))) == (digest, (digest, 1))
    assert [file.stat().st_ino for file in files(root)] == [before]


def test_a_large_stream_is_stored_and_read_in_bounded_pieces(store: BlobStore, root: Path) -> None:
    source = Source(20 * MIB + 7)
    digest, size = store.put_stream(stream(source))
    assert (size, source.most) == (20 * MIB + 7, MIB)
    assert path_of(root, digest).stat().st_size < MIB // 10
    pieces = [len(piece) for piece in store.chunks(digest)]
    assert sum(pieces) == size
    assert max(pieces) <= MIB


def test_what_does_not_compress_is_stored_too(store: BlobStore) -> None:
    content = os.urandom(3 * MIB + 1)
    digest, size = store.put_stream(io.BytesIO(content))
    assert (store.get(digest), size) == (content, len(content))


@pytest.mark.parametrize("limit", [0, 1, 999, 1000, 1001, 2 * MIB], ids=str)
def test_no_more_than_the_limit_is_taken(store: BlobStore, limit: int) -> None:
    source = io.BytesIO(b"x" * 1000)
    digest, size = store.put_stream(source, limit)
    assert size == min(limit, 1000) == source.tell()
    assert store.get(digest) == b"x" * size


def test_a_limit_holds_over_more_than_one_read(store: BlobStore) -> None:
    source = Source(5 * MIB)
    digest, size = store.put_stream(stream(source), 3 * MIB + 1)
    assert (size, len(store.get(digest)), source.left) == (3 * MIB + 1, 3 * MIB + 1, 2 * MIB - 1)


@pytest.mark.parametrize("error", [OSError("unplugged"), KeyError("x")], ids=repr)
def test_a_failing_source_leaves_nothing_behind(store: BlobStore, root: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        store.put_stream(stream(Source(3 * MIB, error)))
    assert list(root.iterdir()) == []


def test_a_missing_blob_is_missing(store: BlobStore) -> None:
    digest = blake3(b"x").hexdigest()
    assert digest not in store
    with pytest.raises(BlobMissing, match=digest):
        store.get(digest)


@pytest.mark.parametrize(
    "digest", ["", "x", "A" * 64, "a" * 63, "a" * 65, "../" + "a" * 61, "a" * 64 + "\n"], ids=ascii
)
def test_what_is_no_digest_is_refused(store: BlobStore, digest: str) -> None:
    with pytest.raises(BadInput, match="is no blob digest"):
        store.get(digest)
    with pytest.raises(BadInput, match="is no blob digest"):
        assert digest in store


def test_a_changed_file_never_gives_other_content(store: BlobStore, root: Path) -> None:
    content = b"some text, some more text"
    digest = store.put(content)
    path = path_of(root, digest)
    whole = path.read_bytes()
    found = []
    for index, byte in enumerate(whole):
        path.write_bytes(whole[:index] + bytes([byte ^ 1]) + whole[index + 1 :])
        found.append(read(store, digest))
    assert set(found) <= {None, content}
    assert found.count(None) >= len(content)


def test_a_file_cut_at_any_length_or_made_longer_is_damaged(store: BlobStore, root: Path) -> None:
    digest = store.put(b"some text, some more text")
    path = path_of(root, digest)
    whole = path.read_bytes()
    for damaged in [*(whole[:length] for length in range(len(whole))), whole + b"\0", whole + whole]:
        path.write_bytes(damaged)
        assert read(store, digest) is None
    path.write_bytes(whole)
    assert read(store, digest) == b"some text, some more text"


def test_something_behind_a_blob_that_fills_its_read_is_damage(store: BlobStore, root: Path) -> None:
    digest = store.put(os.urandom(2 * MIB))
    with open(path_of(root, digest), "ab") as file:
        file.write(b"\0")
    assert read(store, digest) is None


def read(store: BlobStore, digest: str) -> bytes | None:
    """The content, or None if it was found damaged."""
    try:
        return store.get(digest)
    except BlobDamaged:
        return None


def test_other_content_under_a_digest_is_found(store: BlobStore, root: Path) -> None:
    digest, other = store.put(b"one"), store.put(b"two")
    path_of(root, digest).write_bytes(path_of(root, other).read_bytes())
    with pytest.raises(BlobDamaged, match="does not match its digest"):
        store.get(digest)


def test_a_bomb_is_read_in_bounded_pieces_and_found(store: BlobStore, root: Path) -> None:
    digest = store.put(b"small")
    path_of(root, digest).write_bytes(zstd.compress(bytes(100 * MIB)))
    pieces: list[int] = []
    with pytest.raises(BlobDamaged):
        pieces.extend(len(piece) for piece in store.chunks(digest))
    assert sum(pieces) == 100 * MIB
    assert max(pieces) <= MIB


def test_many_writers_of_one_blob_make_one_file(store: BlobStore, root: Path) -> None:
    barrier = threading.Barrier(8)
    digests: list[tuple[str, int]] = []

    def write() -> None:
        barrier.wait()
        digests.append(store.put_stream(stream(Source(2 * MIB))))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [(blake3(bytes(2 * MIB)).hexdigest(), 2 * MIB)] * 8
    assert files(root) == [path_of(root, digests[0][0])]
    assert store.get(digests[0][0]) == bytes(2 * MIB)


def test_processes_write_one_blob_at_once(store: BlobStore, root: Path) -> None:
    with worker("blob", root, 2 * MIB) as one, worker("blob", root, 2 * MIB) as two:
        go(one)
        go(two)
        assert finish(one) == finish(two) == [blake3(bytes(2 * MIB)).hexdigest()]
    [file] = files(root)
    assert store.get(file.parent.name + file.name) == bytes(2 * MIB)


HOUR = 3600.0


def age(path: Path, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


def keeping(*digests: str) -> Callable[[str], bool]:
    return set(digests).__contains__


def test_a_sweep_removes_what_is_old_and_not_wanted(store: BlobStore, root: Path) -> None:
    wanted, garbage, young = store.put(b"wanted"), store.put(b"garbage"), store.put(b"young")
    for digest in (wanted, garbage):
        age(root / digest[:2] / digest[2:], 2 * HOUR)
    size = (root / garbage[:2] / garbage[2:]).stat().st_size
    assert store.sweep(keeping(wanted), HOUR) == (1, size)
    assert (wanted in store, garbage in store, young in store) == (True, False, True)
    assert store.get(wanted) == b"wanted"


def test_storing_garbage_again_saves_it(store: BlobStore, root: Path) -> None:
    digest = store.put(b"again")
    age(root / digest[:2] / digest[2:], 2 * HOUR)
    assert store.put_stream(io.BytesIO(b"again")) == (digest, 5)
    assert store.sweep(keeping(), HOUR) == (0, 0)
    assert store.get(digest) == b"again"


def test_a_blob_that_is_stored_anew_while_it_is_swept_stays(
    store: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = store.put(b"raced")
    age(root / digest[:2] / digest[2:], 2 * HOUR)
    rename = Path.rename

    def renewed_first(path: Path, target: Path) -> Path:
        if path.name == digest[2:]:
            assert store.put(b"raced") == digest
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renewed_first)
    assert store.sweep(keeping(), HOUR) == (0, 0)
    assert store.get(digest) == b"raced"


def test_a_sweep_takes_back_what_one_that_was_cut_off_had_moved(store: BlobStore, root: Path) -> None:
    digest = store.put(b"aside")
    path = root / digest[:2] / digest[2:]
    path.rename(path.with_name(path.name + ".aside"))
    assert digest not in store
    assert store.sweep(keeping(digest), HOUR) == (0, 0)
    assert store.get(digest) == b"aside"


def test_a_sweep_removes_what_a_killed_writer_left(store: BlobStore, root: Path) -> None:
    left, fresh = root / ".1-aa", root / ".2-bb"
    for path in (left, fresh):
        path.write_bytes(b"half")
    age(left, 2 * HOUR)
    assert store.sweep(keeping(), HOUR) == (1, 4)
    assert files(root) == [fresh]


def test_what_a_cache_holds_can_be_adopted_and_outlives_it(tmp_path: Path, store: BlobStore) -> None:
    cache = BlobStore(tmp_path / "cache", synced=False)
    one, two, damaged = (cache.put(content) for content in (b"one", b"two" * 1000, b"damaged"))
    (tmp_path / "cache" / damaged[:2] / damaged[2:]).write_bytes(b"torn")
    there = store.put(b"there")
    assert store.adopt(cache, [one, two, damaged, "0" * 64, there, one]) == {one, two, there}
    assert damaged not in store
    assert cache.sweep(lambda digest: False, -1)[0] == 3
    assert [store.get(digest) for digest in (one, two)] == [b"one", b"two" * 1000]
    assert store.sweep(lambda digest: digest != two, 3600) == (0, 0)


def test_what_is_adopted_is_synced_and_what_is_cached_is_not(
    tmp_path: Path, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    cache = BlobStore(tmp_path / "cache", synced=False)
    digest = cache.put(b"content")
    assert synced == []
    store.adopt(cache, [digest])
    assert str(tmp_path / "cache" / digest[:2] / digest[2:]) in synced
    assert any(path.endswith(digest[:2]) for path in synced)
