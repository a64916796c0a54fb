"""Whatever one copy of the log has whole is there again afterwards, and what no copy has is named."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from sandkeep.events import BadInput, LmdbLog, LogDamaged, Record, StaleFence, codec, journal, quarantine, segment
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Span
from sandkeep.events.errors import LogBusy, LogUnavailable, RecoveryRefused
from sandkeep.events.lmdb_layout import place
from sandkeep.events.recovery import Mode, Recovery, recover
from sandkeep.events.verify import verify, verify_journal

from .support import done, flip, raw

Log = LmdbLog[None]
COUNT = 8


def opened(folder: Path) -> contextlib.closing[Log]:
    return contextlib.closing(Log(folder / "log", journal=folder / "journal"))


def summaries(log: Log) -> list[str]:
    """The words of all events but those that say that the log was recovered."""
    return [r.event.summary for r in log.read() if isinstance(r.event, ev.TaskCompleted)]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A closed keep of six frames: positions 1 to 6, and 7 to 8, with a key each."""
    folder = tmp_path / "keep"
    folder.mkdir()
    with opened(folder) as log:
        for number in range(1, COUNT - 1):
            log.append(f"task/{number % 2}", done(f"needle {number}"), actor="me", key=f"{number}", fence=None)
        log.append("task/0", done("needle 7", "needle 8"), actor="me", key="last", fence=3)
    return folder


def spans(*pairs: tuple[int, int]) -> tuple[Span, ...]:
    return tuple(Span(*pair) for pair in pairs)


def records(folder: Path) -> list[Record]:
    with opened(folder) as log:
        return list(log.read())


def contents(folder: Path) -> dict[Path, bytes]:
    """All files but LMDB's locks."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock.mdb"}


def try_recovery(folder: Path, mode: Mode = Mode.STRICT) -> Recovery:
    return recover(folder, mode, actor="doctor")


def break_line(folder: Path, number: int) -> None:
    """Change a byte in the line of the journal that holds the frame with this number."""
    path = segment.listed(folder / "journal")[-1]
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = lines[number].replace(b'"frame":"', b'"frame":"A', 1)
    path.write_bytes(b"".join(lines))


def break_frame(folder: Path, position: int) -> None:
    flip(folder / "log" / "data.mdb", f"needle {position}".encode())


def whole(folder: Path, before: list[Record], kept: int = COUNT) -> ev.LogRecovered:
    """The keep is as it was up to `kept`, and says that it was recovered."""
    after = records(folder)
    assert after[:kept] == before[:kept]
    assert len(after) == kept + 1
    report = verify(folder / "log", deep=True)
    assert report.ok, report.damage
    assert verify_journal(folder / "journal", report, deep=True) == ()
    event = after[-1].event
    assert isinstance(event, ev.LogRecovered)
    assert (event.kept, after[-1].stream, after[-1].actor) == (kept, "keep", "doctor")
    assert (folder / "quarantine" / event.quarantine).is_dir()
    assert list(folder.glob(".recovery*")) == []
    return event


def lose_the_log(folder: Path) -> None:
    shutil.rmtree(folder / "log")


def lose_the_file(folder: Path) -> None:
    (folder / "log" / "data.mdb").unlink()


def truncate_the_log(folder: Path) -> None:
    os.truncate(folder / "log" / "data.mdb", 8192)


def empty_the_log(folder: Path) -> None:
    os.truncate(folder / "log" / "data.mdb", 0)


def fill_with_garbage(folder: Path) -> None:
    (folder / "log" / "data.mdb").write_bytes(b"no page" * 2000)


def replace_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder / "log")
    (folder / "log").write_text("no folder")


def break_a_frame(folder: Path) -> None:
    break_frame(folder, 3)


def break_the_last_frame(folder: Path) -> None:
    break_frame(folder, 8)


def remove_frames(folder: Path) -> None:
    with raw(folder / "log", "frames") as txn:
        txn.delete(place(2))
        txn.delete(place(7))


def move_a_frame(folder: Path) -> None:
    with raw(folder / "log", "frames") as txn:
        value = txn.pop(place(7))
        assert value is not None
        txn.put(place(2**40), value)


def claim_a_far_position(folder: Path) -> None:
    with raw(folder / "log", "frames") as txn:
        txn.put(place(2**40), b"no frame" * 20)


def break_the_stream_index(folder: Path) -> None:
    with raw(folder / "log", "streams") as txn:
        cursor = txn.cursor()
        assert cursor.first()
        cursor.put(cursor.key(), place(77))


def break_the_key_index(folder: Path) -> None:
    with raw(folder / "log", "keys") as txn:
        cursor = txn.cursor()
        assert cursor.first()
        cursor.put(cursor.key(), cursor.value()[:-1] + b"\x07")


def break_the_free_pages(folder: Path) -> None:
    """Name another page as free in LMDB's list of those, which only writers read."""
    path = folder / "log" / "data.mdb"
    content = bytearray(path.read_bytes())
    metas = [content[page : page + 4096] for page in (0, 4096)]
    newest = max(metas, key=lambda meta: int.from_bytes(meta[144:152], "little"))
    root = int.from_bytes(newest[80:88], "little")
    content[4096 * root + 4095] ^= 0x55
    path.write_bytes(content)


def lose_the_identity(folder: Path) -> None:
    with raw(folder / "log", "meta") as txn:
        txn.delete(b"log_id")


@pytest.mark.parametrize(
    "damage",
    [
        *(lose_the_log, lose_the_file, truncate_the_log, empty_the_log, fill_with_garbage, replace_by_a_file),
        *(
            break_a_frame,
            break_the_last_frame,
            remove_frames,
            move_a_frame,
            claim_a_far_position,
            break_the_stream_index,
            break_the_key_index,
        ),
        break_the_free_pages,
        lose_the_identity,
    ],
    ids=lambda damage: damage.__name__,
)
def test_whatever_happens_to_the_log_the_journal_gives_it_back(written: Path, damage: Callable[[Path], None]) -> None:
    before = records(written)
    damage(written)
    assert not verify(written / "log", deep=True).ok
    found = try_recovery(written)
    assert (found.ok, found.recovered, found.kept, found.head, found.lost) == (True, True, COUNT, COUNT + 1, ())
    assert found.damage
    whole(written, before)
    again = try_recovery(written)
    assert (again.ok, again.recovered, again.head) == (True, False, COUNT + 1)


@pytest.mark.parametrize("content", [None, b"", b"garbage\n" * 99], ids=["lost", "empty", "garbage"])
def test_whatever_happens_to_the_journal_the_log_gives_it_back(written: Path, content: bytes | None) -> None:
    before = records(written)
    path = segment.listed(written / "journal")[-1]
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert try_recovery(written).ok
    assert whole(written, before).source == "log"


@pytest.mark.parametrize("field", [b'"log":"', b'"previous":"'])
def test_a_header_that_is_damaged_does_not_keep_the_log_from_being_opened(written: Path, field: bytes) -> None:
    """It may still be a header: of another log, or of what follows another frame."""
    before = records(written)
    path = segment.listed(written / "journal")[-1]
    content = bytearray(path.read_bytes())
    content[content.index(field) + len(field)] = ord("e" if content[content.index(field) + len(field)] != 101 else "f")
    path.write_bytes(content)
    found = try_recovery(written)
    assert (found.ok, found.recovered, found.kept) == (True, True, COUNT)
    whole(written, before)


def test_the_journal_of_another_log_does_not_take_the_logs_place(written: Path, tmp_path: Path) -> None:
    before = records(written)
    with opened(tmp_path / "other") as log:
        log.append("task/0", done("foreign"), actor="me")
    shutil.rmtree(written / "journal")
    (tmp_path / "other" / "journal").rename(written / "journal")
    found = try_recovery(written)
    assert (found.ok, found.recovered, found.kept, found.source) == (True, True, COUNT, "log")
    whole(written, before)


def test_copies_that_are_damaged_in_different_places_make_a_whole_one(written: Path) -> None:
    before = records(written)
    break_frame(written, 2)
    break_frame(written, 8)
    break_line(written, 4)
    found = try_recovery(written)
    assert (found.ok, found.source) == (True, "log and journal")
    assert whole(written, before).source == "log and journal"
    kept = sorted(path.name for path in Path(found.quarantine or "").iterdir())
    assert kept == [f"{1:020}.jsonl", "data.mdb", "lock.mdb", "recovery.json"]


def test_what_no_copy_has_is_lost_only_if_that_is_allowed(written: Path) -> None:
    before = records(written)
    break_frame(written, 4)
    break_line(written, 4)
    files = contents(written)
    with pytest.raises(
        RecoveryRefused, match=r"up to position 3, but 5 behind it are lost; allow the loss with --mode"
    ):
        try_recovery(written)
    assert contents(written) == files
    found = try_recovery(written, Mode.TRUNCATE_TAIL)
    assert (found.ok, found.kept, found.lost, found.salvaged) == (False, 3, spans((4, 8)), ())
    assert whole(written, before, 3).lost == spans((4, 8))


def test_what_is_behind_a_loss_is_salvaged(written: Path) -> None:
    before = records(written)
    for position in (4, 6):
        break_frame(written, position)
        break_line(written, position)
    found = try_recovery(written, Mode.SALVAGE)
    assert (found.ok, found.lost, found.salvaged) == (False, spans((4, 4), (6, 6)), spans((5, 5), (7, 8)))
    event = whole(written, before, 3)
    assert (event.lost, event.salvaged) == (spans((4, 4), (6, 6)), spans((5, 5), (7, 8)))
    with opened(written) as log:
        log_id = log.log_id
    salvaged = []
    for line in (Path(found.quarantine or "") / "salvaged.jsonl").read_bytes().splitlines(keepends=True):
        entry = segment.decode_line(line, log_id)
        assert isinstance(entry, segment.Entry)
        salvaged += [r for r in entry.frame.records() if r not in salvaged]
    assert salvaged == [before[4], *before[6:]]


def test_a_lost_end_that_nobody_can_tell_is_not_passed_over_in_silence(written: Path) -> None:
    before = records(written)
    lose_the_log(written)
    break_line(written, 7)
    with pytest.raises(RecoveryRefused, match="up to position 6, but it is not certain that nothing was behind it"):
        try_recovery(written)
    found = try_recovery(written, Mode.TRUNCATE_TAIL)
    assert (found.kept, found.lost) == (6, ())
    whole(written, before, 6)


def test_without_any_copy_nothing_is_recovered(written: Path) -> None:
    lose_the_log(written)
    for path in segment.listed(written / "journal"):
        path.unlink()
    for mode in Mode:
        with pytest.raises(RecoveryRefused, match="neither the log nor its journal can be read at all"):
            try_recovery(written, mode)
    assert not (written / "log").exists()


def test_histories_that_differ_are_not_chosen_from_in_silence(written: Path) -> None:
    before = records(written)
    with opened(written) as log:
        log_id = log.log_id
    with raw(written / "log", "frames") as txn:
        value = txn.get(place(7))
        assert value is not None
        frame = codec.decode_frame(value, log_id, 7)
        forged = [msgspec.structs.replace(record, actor="you") for record in frame.records()]
        txn.put(place(7), codec.encode_frame(forged, frame.previous, log_id)[0])
    with pytest.raises(LogDamaged, match="the journal and the log differ at position 8"):
        opened(written)
    assert verify_journal(written / "journal", verify(written / "log")) != ()
    with pytest.raises(RecoveryRefused, match="log and journal differ at position 7, and both are whole"):
        try_recovery(written)
    try_recovery(written, Mode.TRUNCATE_TAIL)
    assert records(written)[:6] == before[:6]
    assert records(written)[6].actor == "you"


def test_keys_are_known_again_and_tokens_are_not(written: Path) -> None:
    with opened(written) as log:
        receipts = [log.append("task/1", done("needle 3"), actor="me", key="3")]
        receipts.append(log.append("task/0", done("needle 7", "needle 8"), actor="me", key="last"))
    lose_the_log(written)
    try_recovery(written)
    with opened(written) as log:
        assert log.append("task/1", done("needle 3"), actor="me", key="3") == receipts[0]
        assert log.append("task/0", done("needle 7", "needle 8"), actor="me", key="last") == receipts[1]
        for stream in ("task/0", "task/1"):
            with pytest.raises(StaleFence, match="acquire the lock again"):
                log.append(stream, done("x"), actor="me", fence=COUNT)
        with pytest.raises(BadInput):
            log.append("task/0", done("x"), actor="me", fence=COUNT + 2)
        granted = log.append("task/0", done("x"), actor="me").first
        assert log.append("task/0", done("x"), actor="me", fence=granted).first == granted + 1


def test_a_recovered_log_is_another_incarnation_of_the_same(written: Path) -> None:
    with opened(written) as log:
        log_id, first = log.log_id, log.incarnation
    lose_the_log(written)
    try_recovery(written)
    with opened(written) as log:
        assert (log.log_id, first) == (log_id, b"")
        second = log.incarnation
        assert len(second) == 16
    with opened(written) as log:
        assert log.incarnation == second


def test_a_whole_log_is_left_alone(written: Path) -> None:
    before = (written / "log" / "data.mdb").read_bytes()
    for mode in Mode:
        found = try_recovery(written, mode)
        assert (found.ok, found.recovered, found.head, found.quarantine) == (True, False, COUNT, None)
    assert (written / "log" / "data.mdb").read_bytes() == before
    assert not (written / "quarantine").exists()


def test_a_recovery_is_alone(written: Path) -> None:
    with opened(written), pytest.raises(LogBusy):
        try_recovery(written)
    break_frame(written, 3)
    descriptor = journal.lock(written / "journal", alone=False)
    with pytest.raises(LogBusy, match="end them first"):
        try_recovery(written, Mode.TRUNCATE_TAIL)
    os.close(descriptor)
    assert try_recovery(written).ok


def test_a_recovery_that_fails_half_way_can_be_tried_again(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = records(written)
    rename = Path.rename
    for failing in range(4):
        break_frame(written, 3)
        calls = 0

        def broken(self: Path, target: Path, limit: int = failing) -> Path:
            nonlocal calls
            calls += 1
            if calls > limit:
                raise OSError(28, "No space left on device")
            return rename(self, target)

        with monkeypatch.context() as context:
            context.setattr(Path, "rename", broken)
            with contextlib.suppress(LogUnavailable):
                try_recovery(written)
        assert try_recovery(written).ok
        assert records(written)[:COUNT] == before
        break_line(written, 2)


def test_segments_of_every_kind_are_recovered_from(tmp_path: Path) -> None:
    with contextlib.closing(Log(tmp_path / "log", journal=tmp_path / "journal", segment_bytes=1000)) as log:
        for number in range(COUNT):
            log.append("task/a", done(f"needle {number}"), actor="me")
    assert {path.suffix for path in segment.listed(tmp_path / "journal")} == {".zst", ".jsonl"}
    before = records(tmp_path)
    lose_the_log(tmp_path)
    assert try_recovery(tmp_path).ok
    whole(tmp_path, before)


def test_a_compressed_segment_that_is_damaged_is_found_and_written_anew(tmp_path: Path) -> None:
    with contextlib.closing(Log(tmp_path / "log", journal=tmp_path / "journal", segment_bytes=1000)) as log:
        for number in range(COUNT):
            log.append("task/a", done(f"needle {number}"), actor="me")
    before = records(tmp_path)
    path = segment.listed(tmp_path / "journal")[1]
    content = path.read_bytes()
    path.write_bytes(content[:200] + bytes([content[200] ^ 4]) + content[201:])
    report = verify(tmp_path / "log")
    assert verify_journal(tmp_path / "journal", report, deep=True) != ()
    assert try_recovery(tmp_path).ok
    assert whole(tmp_path, before).source == "log"
    segment.listed(tmp_path / "journal")[0].unlink()


def test_a_missing_segment_is_found(tmp_path: Path) -> None:
    with contextlib.closing(Log(tmp_path / "log", journal=tmp_path / "journal", segment_bytes=1000)) as log:
        for number in range(COUNT):
            log.append("task/a", done(f"needle {number}"), actor="me")
    segment.listed(tmp_path / "journal")[1].unlink()
    [words] = verify_journal(tmp_path / "journal", verify(tmp_path / "log"), deep=True)
    assert "it does not follow position" in words


def test_a_disk_without_room_leaves_all_as_it_was(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = records(written)
    break_frame(written, 3)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(quarantine.Quarantine, "keep", full)
        with pytest.raises(LogUnavailable, match=r"cannot be recovered: .* try again"):
            try_recovery(written)
    assert try_recovery(written).ok
    whole(written, before)
