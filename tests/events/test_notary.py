from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sandkeep.events import LmdbLog, LogDamaged, codec, notary
from sandkeep.events.errors import BadNote, UnknownKey
from sandkeep.events.lmdb_layout import Published, encode_published, place, stream_key
from sandkeep.events.merkle import Peaks, leaf_hash
from sandkeep.events.note import Checkpoint, Signer, open_checkpoint
from sandkeep.events.verify import verify

from .support import done, raw

SIGNER = Signer("sandkeep/test", Ed25519PrivateKey.from_private_bytes(bytes(32)))


def root_of(log: LmdbLog[None], size: int) -> bytes:
    peaks = Peaks()
    for leaf in log.leaves(until=size):
        peaks.append(leaf_hash(leaf))
    assert peaks.size == size
    return peaks.root()


def test_a_note_vouches_for_the_exact_bytes_of_all_records(log: LmdbLog[None], path: Path) -> None:
    sizes = []
    for count in (1, 3, 1, 4):
        log.append("task/a", done(*"x" * count), actor="me")
        note = notary.publish(log, SIGNER)
        checkpoint = open_checkpoint(note, SIGNER.key)
        sizes.append(checkpoint.size)
        assert checkpoint == Checkpoint("sandkeep/test", log.head().position, root_of(log, checkpoint.size))
        assert notary.publish(log, SIGNER) == note
        assert notary.unpublished(log) == 0
    assert [size for size, _ in log.notes()] == sizes[::-1] == [9, 5, 4, 1]
    report = verify(path, SIGNER.key)
    assert (report.ok, report.notes) == (True, 4)


def test_leaves_are_the_stored_bytes_of_the_records(log: LmdbLog[None]) -> None:
    for count in (1, 3, 2):
        log.append("task/a", done(*"xyz"[:count]), actor="me")
    everything = list(log.leaves())
    assert [codec.decode_record(leaf) for leaf in everything] == list(log.read())
    assert [msgspec.msgpack.encode(record) for record in log.read()] == everything
    for after in range(7):
        for until in range(after, 7):
            assert list(log.leaves(after, until=until)) == everything[after:until]


def test_an_empty_log_can_be_published(log: LmdbLog[None], path: Path) -> None:
    assert open_checkpoint(notary.publish(log, SIGNER), SIGNER.key).size == 0
    log.append("task/a", done("x"), actor="me")
    assert open_checkpoint(notary.publish(log, SIGNER), SIGNER.key).size == 1


@pytest.fixture
def written(path: Path) -> Path:
    """A closed log of five records with notes for 3 and 5, and one record more."""
    with contextlib.closing(LmdbLog[None](path)) as log:
        for texts in ("123", "45", "6"):
            log.append("task/a", done(*texts), actor="me")
            if texts != "6":
                notary.publish(log, SIGNER)
    return path


def forge(path: Path, texts: str) -> None:
    """Rewrite the whole history with good checksums, as someone who can write the file might."""
    with contextlib.closing(LmdbLog[None](path)) as log:
        log_id, records = log.log_id, list(log.read())
    with raw(path, "frames") as txn:
        for first in (1, 4, 6):
            txn.delete(place(first))
        previous = codec.GENESIS
        for record, text in zip(records, texts, strict=False):
            data = msgspec.Raw(msgspec.msgpack.encode({"summary": text}))
            value, previous = codec.encode_frame([msgspec.structs.replace(record, data=data)], previous, log_id)
            txn.put(place(record.position), value)
    with raw(path, "streams") as txn:
        for revision in range(len(texts) + 1, 7):
            txn.delete(stream_key("task/a", revision))


def test_a_history_rewritten_with_good_checksums_is_found(written: Path) -> None:
    forge(written, "12X456")
    assert verify(written).damage == (
        "the first 3 records are not those that their published note vouches for",
        "the first 5 records are not those that their published note vouches for",
    )
    forge(written, "1234X6")
    report = verify(written, SIGNER.key)
    assert (len(report.damage), report.notes) == (1, 1)
    forge(written, "12345Y")  # what no note vouches for yet can be rewritten
    assert verify(written).ok


def test_a_log_cut_below_what_was_published_is_found_and_nothing_is_signed(written: Path) -> None:
    forge(written, "1234")
    assert verify(written).damage == ("the log ends at position 4, but a note was published for 5 records",)
    with contextlib.closing(LmdbLog[None](written)) as log, pytest.raises(LogDamaged, match="ends at position 4"):
        notary.publish(log, SIGNER)


def test_a_note_of_another_key_is_found_and_nothing_is_signed(written: Path) -> None:
    other = Signer("sandkeep/test", Ed25519PrivateKey.generate())
    damage = verify(written, other.key).damage
    assert len(damage) == 2
    assert "signed by another key" in damage[0]
    with contextlib.closing(LmdbLog[None](written)) as log, pytest.raises(UnknownKey):
        notary.publish(log, other)


def test_forged_peaks_are_never_signed(written: Path) -> None:
    with contextlib.closing(LmdbLog[None](written)) as log:
        size, published = log.notes()[0]
    forged = Peaks()
    for _ in range(size):
        forged.append(leaf_hash(b"other"))
    for bad in (forged.hashes, published.peaks[:1], ()):
        with raw(written, "notes") as txn:
            txn.put(place(size), encode_published(Published(published.note, bad)))
        with contextlib.closing(LmdbLog[None](written)) as log, pytest.raises(LogDamaged, match="tree"):
            notary.publish(log, SIGNER)


@pytest.mark.parametrize("value", [b"", b"\xc1", encode_published(Published(b"no note", ()))])
def test_damaged_notes_are_found(written: Path, value: bytes) -> None:
    with raw(written, "notes") as txn:
        txn.put(place(6), value)
    [damage] = verify(written).damage
    assert "note" in damage
    with contextlib.closing(LmdbLog[None](written)) as log, pytest.raises((LogDamaged, BadNote)):
        notary.publish(log, SIGNER)


def test_a_note_under_another_size_is_found(written: Path) -> None:
    with contextlib.closing(LmdbLog[None](written)) as log:
        log.add_note(6, log.notes()[0][1])
    assert verify(written).damage == ("the note published for 6 records is for 5",)


def test_a_log_of_the_first_release_has_no_notes_and_is_whole(path: Path) -> None:
    with contextlib.closing(LmdbLog[None](path)) as log:
        log.append("task/a", done("x"), actor="me")
    import lmdb

    with lmdb.open(str(path), max_dbs=6) as env:
        notes = env.open_db(b"notes")
        with env.begin(write=True) as txn:
            txn.drop(notes, delete=True)
    assert verify(path).ok


def test_notes_wait_for_a_map_that_grows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandkeep.events.lmdb_layout.MAP_BYTES", 64 << 10)
    with contextlib.closing(LmdbLog[None](path)) as log:
        for _ in range(200):
            log.append("task/a", done("x"), actor="me")
            notary.publish(log, SIGNER)
    assert verify(path, SIGNER.key).notes == 200
