"""Damage is found by whoever reads it, and located; whole frames are still read."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from sandkeep.events import LmdbLog, LogDamaged, LogUnavailable, codec
from sandkeep.events.lmdb_layout import place, position_at, stream_key

from .support import done, flip, raw, words

Log = LmdbLog[None]


@pytest.fixture
def written(path: Path) -> Path:
    """A closed log of five frames: positions 1, 2, 3 to 4, 5, 6."""
    with contextlib.closing(Log(path)) as log:
        for texts in (["needle one"], ["needle two"], ["needle three", "needle four"], ["needle five"], ["needle six"]):
            log.append("task/a", done(*texts), actor="me")
    return path


def reopened(path: Path) -> contextlib.closing[Log]:
    return contextlib.closing(Log(path))


@pytest.mark.parametrize(("needle", "position"), [("one", 1), ("two", 2), ("four", 3), ("five", 5)], ids=str)
def test_one_changed_bit_of_the_file_is_found_and_located(written: Path, needle: str, position: int) -> None:
    flip(written / "data.mdb", f"needle {needle}".encode())
    with reopened(written) as log:
        with pytest.raises(LogDamaged, match=f"frame at position {position} does not match its checksum"):
            list(log.read())
        with pytest.raises(LogDamaged, match=f"position {position}"):
            list(log.read_stream("task/a"))
        assert words(log.read(5)) == ["needle six"]


def test_nothing_is_appended_behind_a_damaged_last_frame(written: Path) -> None:
    flip(written / "data.mdb", b"needle six")
    with reopened(written) as log:
        for call in (log.head, lambda: log.append("task/a", done("x"), actor="me")):
            with pytest.raises(LogDamaged, match="position 6"):
                call()
        assert words(log.read(until=2)) == ["needle one", "needle two"]


@pytest.mark.parametrize("pages", [1, 2, 3, 5])
def test_a_file_that_was_cut_is_refused_before_it_is_mapped(written: Path, pages: int) -> None:
    """Or this process would end with SIGBUS."""
    file = written / "data.mdb"
    os.truncate(file, pages * 4096)
    before = file.read_bytes()
    with pytest.raises(LogDamaged, match="sandkeep recover"):
        Log(written)
    assert file.read_bytes() == before


def test_a_file_that_ends_before_pages_never_written_is_opened(written: Path) -> None:
    file = written / "data.mdb"
    with file.open("r+b") as raw_file:
        for page in (0, 1):  # as if the last transaction had taken one more page, and given it back
            raw_file.seek(page * 4096 + 16 + 120)
            last = int.from_bytes(raw_file.read(8), "little")
            raw_file.seek(page * 4096 + 16 + 120)
            raw_file.write((max(last, file.stat().st_size // 4096 - 1) + 1).to_bytes(8, "little"))
    with reopened(written) as log:
        assert len(list(log.read())) == 6


def swap(txn: lmdb.Transaction[bytes]) -> None:
    one, two = txn.get(place(1)), txn.get(place(2))
    assert one is not None
    assert two is not None
    txn.put(place(1), two)
    txn.put(place(2), one)


def relink(txn: lmdb.Transaction[bytes]) -> None:
    """Rewrite the second frame as a forger would who knows the log's id but not how to reach what follows."""
    value = txn.get(place(2))
    assert value is not None
    records = codec.Frame(2, 1, b"", b"", value[80:]).records()
    txn.put(place(2), codec.encode_frame(records, codec.GENESIS, LOG_ID[0])[0])


def rewrite_the_first(txn: lmdb.Transaction[bytes]) -> None:
    value = txn.get(place(1))
    assert value is not None
    records = codec.Frame(1, 1, b"", b"", value[80:]).records()
    txn.put(place(1), codec.encode_frame(records, bytes(31) + b"\1", LOG_ID[0])[0])


def cut(txn: lmdb.Transaction[bytes]) -> None:
    value = txn.get(place(2))
    assert value is not None
    txn.put(place(2), value[:40])


LOG_ID = [b""]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (swap, "what is stored at position 1 is not the frame of that position"),
        (relink, "the frame at position 2 does not follow the one before it"),
        (rewrite_the_first, "the frame at position 1 does not follow the one before it"),
        (cut, "the frame at position 2 is cut short"),
        (lambda txn: txn.delete(place(1)), "the log does not begin at position 1 but at 2"),
        (lambda txn: txn.delete(place(3)), "the log lacks positions 3 to 4"),
    ],
    ids=["swapped", "relinked", "first", "cut", "no first", "missing"],
)
def test_frames_out_of_place_are_found(
    written: Path, damage: Callable[[lmdb.Transaction[bytes]], object], words: str
) -> None:
    with reopened(written) as log:
        LOG_ID[0] = log.log_id
    with raw(written, "frames") as txn:
        damage(txn)
    with reopened(written) as log, pytest.raises(LogDamaged, match=words):
        list(log.read())


def test_a_missing_frame_is_found_when_reading_begins_behind_it(written: Path) -> None:
    with raw(written, "frames") as txn:
        txn.delete(place(2))
    with reopened(written) as log, pytest.raises(LogDamaged, match="the log lacks positions 2 to 2"):
        list(log.read(1))


def test_a_frame_of_another_log_is_found(written: Path, tmp_path: Path) -> None:
    with contextlib.closing(Log(tmp_path / "other")) as other:
        other.append("task/a", done("needle one"), actor="me")
    with raw(tmp_path / "other", "frames") as txn:
        value = txn.get(place(1))
        assert value is not None
    with raw(written, "frames") as txn:
        txn.put(place(1), value)
    with reopened(written) as log, pytest.raises(LogDamaged, match="position 1 does not match its checksum"):
        list(log.read())


@pytest.mark.parametrize("leads", [1, 5, 99], ids=str)
def test_a_stream_index_that_leads_elsewhere_is_found(written: Path, leads: int) -> None:
    with raw(written, "streams") as txn:
        assert position_at(txn.get(stream_key("task/a", 2)) or b"") == 2
        txn.put(stream_key("task/a", 2), place(leads))
    with reopened(written) as log, pytest.raises(LogDamaged, match=f"revision 2 of task/a is not at position {leads}"):
        list(log.read_stream("task/a"))


def test_a_stream_index_that_skips_a_revision_is_found(written: Path) -> None:
    with raw(written, "streams") as txn:
        txn.delete(stream_key("task/a", 3))
    with reopened(written) as log, pytest.raises(LogDamaged, match="task/a lacks revision 3"):
        list(log.read_stream("task/a", 1))


def test_a_log_of_another_format_is_refused(written: Path) -> None:
    with raw(written, "meta") as txn:
        txn.put(b"format", b"2")
    for _ in range(2):
        with pytest.raises(LogDamaged, match="has format b'2'; this version reads format 1"):
            Log(written)
    with raw(written, "meta") as txn:
        txn.put(b"format", b"1")
    with reopened(written) as log:
        assert log.head().position == 6


def test_a_log_without_its_id_is_refused(written: Path) -> None:
    with raw(written, "meta") as txn:
        txn.delete(b"log_id")
    with pytest.raises(LogDamaged, match="its format and id are missing"):
        Log(written)


def test_an_environment_of_something_else_is_refused(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "log"), max_dbs=20) as env:
        for number in range(20):
            env.open_db(f"{number}".encode())
        with env.begin(write=True) as txn:
            txn.put(b"meta", b"no database")
    for _ in range(2):
        with pytest.raises(LogDamaged, match="holds no whole log"):
            Log(tmp_path / "log")


def test_a_file_that_is_no_environment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "data.mdb").write_bytes(b"no page" * 2000)
    with pytest.raises(LogDamaged, match="holds no whole log"):
        Log(tmp_path / "log")


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file")
    with pytest.raises(LogUnavailable, match="cannot be opened"):
        Log(tmp_path / "log")


def test_an_empty_file_is_no_log_and_is_not_made_one(written: Path) -> None:
    (written / "data.mdb").write_bytes(b"")
    with pytest.raises(LogDamaged, match="holds no whole log"):
        reopened(written)


def test_a_log_is_made_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: str, target: Path) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as context:
        context.setattr(os, "link", link)
        with pytest.raises(LogUnavailable, match="no room"):
            Log(path)
    assert list(path.iterdir()) == []


def test_of_two_that_make_a_log_the_slower_takes_up_the_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: str, target: Path) -> None:
        monkeypatch.undo()
        with reopened(path) as log:
            log.append("task/a", done("faster"), actor="me")
        os.link(source, target)

    monkeypatch.setattr(os, "link", link)
    with reopened(path) as log:
        assert words(log.read()) == ["faster"]
    assert sorted(each.name for each in path.iterdir()) == ["data.mdb", "lock.mdb"]
