from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest

from sandkeep.events import LmdbLog, LogDamaged, LogUnavailable, Record, codec
from sandkeep.events.lmdb_layout import place, stream_key
from sandkeep.events.verify import MAX_DAMAGE, main, scan, verify

from .support import done, flip, raw


@pytest.fixture
def written(path: Path) -> Path:
    """A closed log of four frames: positions 1, 2 to 3, 4, 5."""
    with contextlib.closing(LmdbLog[None](path)) as log:
        for stream, texts in (("task/a", "1"), ("task/b", "23"), ("task/a", "4"), ("task/a", "5")):
            log.append(stream, done(*(f"needle {text}" for text in texts)), actor="me")
    return path


def test_a_whole_log_is_whole(written: Path) -> None:
    with contextlib.closing(LmdbLog[None](written)) as log:
        report = verify(written)
        assert (report.head, report.checksum) == (5, log.head().checksum.hex())
    assert (report.ok, report.events, report.frames, report.damaged, report.damage) == (True, 5, 4, 0, ())


def test_a_log_is_verified_while_it_is_written(log: LmdbLog[None], path: Path) -> None:
    for count in range(1, 4):
        log.append("task/a", done("x"), actor="me")
        assert (verify(path).ok, verify(path).head) == (True, count)


def test_an_empty_log_is_whole(log: LmdbLog[None], path: Path) -> None:
    assert log.head().position == 0
    report = verify(path)
    assert (report.ok, report.head, report.events, report.checksum) == (True, 0, 0, codec.GENESIS.hex())


def test_the_scan_goes_on_behind_damage_and_reports_all_of_it(written: Path) -> None:
    flip(written / "data.mdb", b"needle 1")
    flip(written / "data.mdb", b"needle 4")
    report = verify(written)
    assert not report.ok
    assert report.head == 5
    text = "\n".join(report.damage)
    assert "frame at position 1 does not match its checksum" in text
    assert "frame at position 4 does not match its checksum" in text
    assert "the log lacks positions 4 to 4" in text
    assert report.damaged == len(report.damage)


def test_a_forged_link_is_reported(written: Path) -> None:
    log_id = scan_id(written)
    with raw(written, "frames") as txn:
        value = txn.get(place(4))
        assert value is not None
        records = codec.decode_frame(value, log_id, 4).records()
        txn.put(place(4), codec.encode_frame(records, codec.GENESIS, log_id)[0])
    report = verify(written)
    assert report.damage == (
        "the frame at position 4 does not follow the one before it",
        "the frame at position 5 does not follow the one before it",
    )


def test_a_record_whose_body_does_not_fit_its_type_is_reported(written: Path) -> None:
    log_id = scan_id(written)
    bad = Record(6, "task/a", 4, 0, "me", None, None, "TaskCompleted", 1, msgspec.Raw(b"\x80"))
    with raw(written, "frames") as txn:
        value = txn.get(place(5))
        assert value is not None
        txn.put(place(6), codec.encode_frame([bad], codec.stored_checksum(value), log_id)[0])
    with raw(written, "streams") as txn:
        txn.put(stream_key("task/a", 4), place(6))
    [damage] = verify(written).damage
    assert damage.startswith("position 6: TaskCompleted version 1 cannot be decoded")


def test_a_whole_frame_that_holds_no_records_is_reported(written: Path) -> None:
    log_id = scan_id(written)
    with raw(written, "frames") as txn:
        value = txn.get(place(5))
        assert value is not None
        previous, body = codec.stored_checksum(value), b"\xc1"
        checksum = codec.checksum(previous, log_id, 6, 1, body)
        header = b"skf1" + (6).to_bytes(8, "big") + (1).to_bytes(4, "big") + previous + checksum
        txn.put(place(6), header + body)
        txn.put(b"odd", b"")
    text = "\n".join(verify(written).damage)
    assert "the frame at position 6 cannot be decoded" in text
    assert f"key {b'odd'.hex()} is no position" in text


def test_a_wrong_stream_index_is_reported(written: Path) -> None:
    with raw(written, "streams") as txn:
        txn.delete(stream_key("task/a", 2))
        txn.put(stream_key("task/b", 1), place(5))
    text = "\n".join(verify(written).damage)
    assert "the stream index does not lead to position 2 (task/b)" in text
    assert "the stream index does not lead to position 4 (task/a)" in text
    assert "task/a lacks revision 2" in text
    assert "the stream index has 4 entries for 5 events" in text


def test_much_damage_is_listed_in_part_and_counted_whole(log: LmdbLog[None], path: Path) -> None:
    for _ in range(MAX_DAMAGE + 5):
        log.append("task/a", done("x"), actor="me")
    log.close()
    with raw(path, "frames") as txn:
        for position in range(1, MAX_DAMAGE + 6):
            txn.put(place(position), b"nothing")
    report = verify(path)
    assert len(report.damage) == MAX_DAMAGE
    assert report.damaged == MAX_DAMAGE + 6
    assert (report.head, report.events, report.frames) == (0, 0, 0)


@pytest.mark.parametrize("content", [b"no page" * 2000, b""], ids=["garbage", "empty"])
def test_a_file_that_is_no_log_is_reported(path: Path, content: bytes) -> None:
    path.mkdir()
    (path / "data.mdb").write_bytes(content)
    report = verify(path)
    assert (report.ok, report.damaged, report.head) == (False, 1, 0)
    assert "\n" not in report.damage[0]
    with pytest.raises((LogDamaged, LogUnavailable)):
        scan(path)


def test_a_file_that_ends_whoever_maps_it_is_reported(written: Path) -> None:
    data = written / "data.mdb"
    data.write_bytes(data.read_bytes()[:8192])
    report = verify(written)
    assert (report.ok, report.damaged) == (False, 1)
    assert "SIGBUS" in report.damage[0]


def test_a_scan_that_is_ended_leaves_no_copy_behind(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, copies = tmp_path / "ended", tmp_path / "copies"
    ended.write_text('#!/bin/sh\ncp -r "$4" "${TMPDIR:-/tmp}/copy" && kill -BUS $$\n')
    ended.chmod(0o755)
    copies.mkdir()
    monkeypatch.setenv("TMPDIR", str(copies))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(sys, "executable", str(ended))
    assert "SIGBUS" in verify(written, deep=True).damage[0]
    assert list(copies.iterdir()) == []


def test_a_scan_that_cannot_be_started_is_no_verdict(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(written / "no-python"))
    with pytest.raises(LogUnavailable, match="cannot be started"):
        verify(written)


def test_the_scanning_process_prints_its_report(
    written: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(sys, "argv", ["verify", str(written)])
    main()
    sys.stdout.flush()
    assert msgspec.json.decode(capfdbinary.readouterr().out)["head"] == 5
    monkeypatch.setattr(sys, "argv", ["verify", str(written / "none")])
    with pytest.raises(SystemExit, match="cannot be opened"):
        main()


def scan_id(path: Path) -> bytes:
    with contextlib.closing(LmdbLog[None](path)) as log:
        return log.log_id
