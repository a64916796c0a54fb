"""The journal is the log's second copy, whoever wrote it and however they ended."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import msgspec
import pytest

from sandkeep.events import LmdbLog, LogDamaged, LogUnavailable, codec, journal, lmdb_log, segment
from sandkeep.events.codec import Frame
from sandkeep.events.errors import LogBusy
from sandkeep.events.lmdb_layout import Published, place
from sandkeep.events.quarantine import Quarantine
from sandkeep.events.segment import Entry, Header, Trailer

from .support import done, finish, go, raw, words, worker

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Log = LmdbLog[None]


def opened(folder: Path, segment_bytes: int = journal.SEGMENT_BYTES) -> contextlib.closing[Log]:
    return contextlib.closing(
        Log(folder / "log", journal=folder / "journal", segment_bytes=segment_bytes, clock=lambda: 10**18)
    )


def append(log: Log, *texts: str) -> None:
    for text in texts:
        log.append("task/a", done(text), actor="me", key=text)


def newest(folder: Path) -> Path:
    return segment.listed(folder / "journal")[-1]


def unpacked(path: Path) -> bytes:
    return zstd.decompress(path.read_bytes())


def lines(folder: Path) -> list[bytes]:
    return newest(folder).read_bytes().splitlines(keepends=True)


def journaled(folder: Path, log_id: bytes) -> list[Frame]:
    """The frames of all segments, each of which must be whole and follow the one before it."""
    frames: list[Frame] = []
    checksum = codec.GENESIS
    for path in segment.listed(folder / "journal"):
        assert segment.whole(path, log_id)
        for entry in segment.found(path, log_id):
            if isinstance(entry, Header):
                assert bytes.fromhex(entry.previous) == checksum
            elif isinstance(entry, Entry):
                frames.append(entry.frame)
                checksum = entry.frame.checksum
    return frames


def stored(folder: Path, log_id: bytes) -> list[Frame]:
    with raw(folder / "log", "frames") as txn:
        return [codec.decode_frame(value, log_id, int.from_bytes(key, "big")) for key, value in txn.cursor()]


def agree(folder: Path, *texts: str) -> None:
    """Log and journal hold the same frames, with these words."""
    with opened(folder) as log:
        assert words(log.read()) == list(texts)
        log_id = log.log_id
    assert journaled(folder, log_id) == stored(folder, log_id)


def quarantined(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "quarantine").rglob("*")) if path.is_file()]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A closed keep of three frames."""
    with opened(tmp_path) as log:
        append(log, "1", "2", "3")
    return tmp_path


def test_each_frame_is_a_line_that_gives_its_very_bytes(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append("task/a", done("1", "2"), actor="me", key="k")
        log.append("task/a", done("1", "2"), actor="me", key="k")
        append(log, "3")
    agree(tmp_path, "1", "2", "3")
    assert len(lines(tmp_path)) == 3


def test_an_append_costs_one_write_and_no_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as log:
        append(log, "1")
        calls: list[str] = []
        write = os.write

        def counted(file: int, data: bytes) -> int:
            calls.append("write")
            return write(file, data)

        monkeypatch.setattr(os, "write", counted)
        monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync"))
        append(log, "2")
        assert calls == ["write"]
        monkeypatch.undo()


def test_the_journal_of_a_log_that_had_none_is_completed(tmp_path: Path) -> None:
    with contextlib.closing(Log(tmp_path / "log")) as log:
        append(log, "1", "2")
    agree(tmp_path, "1", "2")


def test_what_the_journal_lacks_is_completed(written: Path) -> None:
    for left in (0, 1, 2):
        path = newest(written)
        path.write_bytes(b"".join(lines(written)[: 1 + left]))
        agree(written, "1", "2", "3")
    newest(written).unlink()
    agree(written, "1", "2", "3")
    newest(written).write_bytes(b"")
    agree(written, "1", "2", "3")


@pytest.mark.parametrize("kept", [1, 30, -1], ids=str)
def test_a_line_that_was_not_finished_is_cut_and_kept(written: Path, kept: int) -> None:
    *whole, last = lines(written)
    newest(written).write_bytes(b"".join(whole) + last[:kept])
    agree(written, "1", "2", "3")
    assert quarantined(written) == [last[:kept]]


def stray(folder: Path, texts: str, txn_id: int | None = None) -> bytes:
    """Write to the journal what a process does that dies before its log commits; the line it wrote."""
    with opened(folder) as log:
        head = log.head()
        with log._layout.writing() as txn:
            assert log._journal is not None
            wanted = txn.id() if txn_id is None else txn_id
            for number, text in enumerate(texts, head.position + 1):
                frame = Frame(number, 1, head.checksum, bytes(32), text.encode())
                checksum = codec.checksum(frame.previous, log.log_id, frame.first, 1, frame.body)
                frame = Frame(number, 1, head.checksum, checksum, frame.body)
                log._journal._put(frame, wanted)
                head = type(head)(number, checksum, 0)
    return lines(folder)[-1]


def test_a_frame_that_was_never_committed_is_cut_and_kept(written: Path) -> None:
    line = stray(written, "x")
    agree(written, "1", "2", "3")
    assert quarantined(written) == [line]
    with opened(written) as log:
        append(log, "4")
    agree(written, "1", "2", "3", "4")


def test_a_log_that_is_open_cuts_it_too(written: Path) -> None:
    with opened(written) as log:
        append(log, "4")
        assert log._journal is not None
        with log._layout.writing() as txn:
            head = log._layout.head(txn)
            checksum = codec.checksum(head.checksum, log.log_id, 5, 1, b"x")
            with newest(written).open("ab") as file:  # another process, which died then
                file.write(segment.encode_line(5, 1, txn.id(), head.checksum, checksum, b"x"))
        append(log, "5")
    agree(written, "1", "2", "3", "4", "5")
    assert len(quarantined(written)) == 1


def test_a_log_that_has_lost_commits_is_refused(written: Path) -> None:
    stray(written, "x", txn_id=3)
    with pytest.raises(
        LogDamaged, match="the log has lost position 4, which its journal holds; run 'sandkeep recover'"
    ):
        opened(written)
    newest(written).write_bytes(b"".join(lines(written)[:-1]))
    agree(written, "1", "2", "3")
    stray(written, "xy")
    with pytest.raises(LogDamaged, match="the journal goes on to position 5, the log ends at 3"):
        opened(written)
    assert not (written / "quarantine").exists()


def test_a_log_whose_newest_meta_page_is_lost_is_refused(written: Path) -> None:
    data = written / "log" / "data.mdb"
    content = bytearray(data.read_bytes())
    metas = [int.from_bytes(content[at + 144 : at + 152], "little") for at in (0, 4096)]
    newer = metas.index(max(metas)) * 4096
    content[newer + 144] = 0  # LMDB falls back to the state before the last commit
    data.write_bytes(content)
    before = lines(written)
    with pytest.raises(LogDamaged, match="the log has lost position 3"):
        opened(written)
    assert lines(written) == before


def test_a_journal_and_a_log_that_differ_are_refused(written: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with opened(written) as log:
        log_id = log.log_id
    first = stored(written, log_id)[0]
    records = [msgspec.structs.replace(first.records()[0], actor="you")]
    value, _ = codec.encode_frame(records, codec.GENESIS, log_id)
    with raw(written / "log", "frames") as txn:
        for position in (2, 3):
            txn.delete(place(position))
        txn.put(place(1), value)
    newest(written).write_bytes(b"".join(lines(written)[:2]))
    with pytest.raises(LogDamaged, match="the journal and the log differ at position 1"):
        opened(written)


def test_the_journal_of_another_keep_is_refused(written: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with opened(other) as log:
        append(log, "x")
    before = lines(other)
    newest(written).write_bytes(b"".join(before))
    with pytest.raises(LogDamaged, match="is the journal of another log"):
        opened(written)
    assert lines(written) == before


def test_a_journal_without_its_log_is_not_given_a_new_one(written: Path) -> None:
    (written / "log" / "data.mdb").unlink()
    (written / "log" / "lock.mdb").unlink()
    (written / "log").rmdir()
    with pytest.raises(LogDamaged, match=r"its journal .* is not; run 'sandkeep recover' to rebuild the log"):
        opened(written)
    assert not (written / "log").exists()


def test_what_another_process_left_behind_is_noticed_before_the_next_line(written: Path) -> None:
    with opened(written) as log:
        append(log, "4")
        with log._layout.writing() as txn:
            head, txn_id = log._layout.head(txn), txn.id()
        checksum = codec.checksum(head.checksum, log.log_id, 5, 1, b"x")
        line = segment.encode_line(5, 1, txn_id, head.checksum, checksum, b"x")
        for left in (line, line[:50]):
            with open(newest(written), "ab") as file:
                file.write(left)
            append(log, "5" if left == line else "6")
    agree(written, "1", "2", "3", "4", "5", "6")
    assert sorted(quarantined(written)) == sorted([line, line[:50]])


def test_a_commit_without_frames_does_not_make_a_dead_line_look_committed(written: Path) -> None:
    with opened(written) as log:
        append(log, "4")
        with log._layout.writing() as txn:
            head, txn_id = log._layout.head(txn), txn.id()
        checksum = codec.checksum(head.checksum, log.log_id, 5, 1, b"x")
        with open(newest(written), "ab") as file:
            file.write(segment.encode_line(5, 1, txn_id, head.checksum, checksum, b"x"))
        log.add_note(4, Published(b"note", ()))
        append(log, "5")
    agree(written, "1", "2", "3", "4", "5")
    assert len(quarantined(written)) == 1


@pytest.mark.parametrize("limit", [1, 1200], ids=str)
def test_full_segments_are_sealed_and_compressed(tmp_path: Path, limit: int) -> None:
    texts = [f"{number}" for number in range(30)]
    with opened(tmp_path, limit) as log:
        append(log, *texts)
    with opened(tmp_path, limit):
        pass
    paths = segment.listed(tmp_path / "journal")
    assert len(paths) > 5
    assert {path.suffix for path in paths[:-1]} == {".zst"}
    assert list((tmp_path / "journal").glob(".*")) == []
    agree(tmp_path, *texts)


def test_processes_share_and_seal_the_same_segments(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(worker("journal-append", tmp_path, 60)) for _ in range(4)]
        for process in workers:
            go(process)
        assert sorted(int(line) for process in workers for line in finish(process)) == list(range(1, 241))
    with opened(tmp_path) as log:
        log_id = log.log_id
    assert len(segment.listed(tmp_path / "journal")) > 5
    assert journaled(tmp_path, log_id) == stored(tmp_path, log_id)
    assert not (tmp_path / "quarantine").exists()


def test_a_process_that_died_while_it_sealed_is_followed(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        append(log, "1", "2")
        assert log._journal is not None
        log._journal._seal()
    agree(tmp_path, "1", "2")
    with opened(tmp_path, 1) as log:
        append(log, "3")
        assert log._journal is not None
        log._journal._seal()
        log._journal._begin(4)
    agree(tmp_path, "1", "2", "3")
    with opened(tmp_path) as log:
        append(log, "4")
    agree(tmp_path, "1", "2", "3", "4")


def test_a_lost_newest_segment_is_written_anew(tmp_path: Path) -> None:
    with opened(tmp_path, 1) as log:
        append(log, "1", "2", "3")
    newest(tmp_path).unlink()
    assert newest(tmp_path).suffix == ".zst"
    agree(tmp_path, "1", "2", "3")


@pytest.fixture
def another_boot(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(journal, "this_boot", lambda: "another")


def torn(content: bytes) -> Iterator[bytes]:
    """What a power loss may leave of a file whose size had reached the disk, and whose content had not."""
    for start in range(0, len(content), 97):
        yield content[:start] + bytes(min(97, len(content) - start)) + content[start + 97 :]


def test_another_boot_checks_all_and_rewrites_what_is_torn(written: Path, another_boot: Callable[[], None]) -> None:
    another_boot()
    path = newest(written)
    content = path.read_bytes()
    for left in torn(content):
        for each in segment.listed(written / "journal"):
            each.unlink()
        path.write_bytes(left)
        agree(written, "1", "2", "3")
        assert left in quarantined(written) or not left.endswith(b"\n")
    for each in segment.listed(written / "journal"):
        each.unlink()
    path.write_bytes(content)
    agree(written, "1", "2", "3")
    assert [each.name for each in segment.listed(written / "journal")] == [f"{1:020}.jsonl.zst", f"{4:020}.jsonl"]


def test_another_boot_checks_segments_that_were_sealed_but_not_durable(
    tmp_path: Path, another_boot: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr(segment, "compress", lambda path: None)
        with opened(tmp_path, 1) as log:
            append(log, "1", "2", "3")
    another_boot()
    middle = segment.listed(tmp_path / "journal")[1]
    middle.write_bytes(bytes(len(middle.read_bytes())))
    agree(tmp_path, "1", "2", "3")
    assert [path.suffix for path in segment.listed(tmp_path / "journal")][:1] == [".zst"]


def test_a_last_line_that_does_not_hold_is_written_anew(written: Path) -> None:
    content = newest(written).read_bytes()
    newest(written).write_bytes(content[:-9] + b"A" + content[-8:])
    agree(written, "1", "2", "3")
    assert quarantined(written) == [content[:-9] + b"A" + content[-8:]]


def test_every_changed_byte_of_a_segment_is_found(written: Path) -> None:
    with opened(written) as log:
        log_id = log.log_id
        assert log._journal is not None
        log._journal._seal()
    path = segment.listed(written / "journal")[0]
    if path.suffix == ".zst":
        content = unpacked(path)
        path.unlink()
        path = path.with_suffix("")
    else:
        content = path.read_bytes()
    header = len(content.splitlines()[0])
    for at in range(len(content) - 1):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert any(isinstance(entry, LogDamaged) for entry in segment.found(path, log_id)), at
        assert at <= header or not segment.whole(path, log_id)


def test_a_compressed_segment_that_is_damaged_is_found(tmp_path: Path) -> None:
    with opened(tmp_path, 1) as log:
        append(log, "1", "2")
        log_id = log.log_id
    path = segment.listed(tmp_path / "journal")[0]
    content = path.read_bytes()
    for left in (content[:-4], content[:20], b"", content[:30] + b"x" + content[31:], content + b"x"):
        path.write_bytes(left)
        assert any(isinstance(entry, LogDamaged) for entry in segment.found(path, log_id)), left


def test_a_seal_that_does_not_hold_is_not_compressed(written: Path) -> None:
    path = newest(written)
    path.write_bytes(path.read_bytes() + segment.encode(Trailer("0" * 64)) + b"\n")
    segment.compress(path)
    assert path.exists()
    assert list(path.parent.glob("*.zst")) == list(path.parent.glob(".*")) == []


def test_a_journal_is_for_one_recovery_or_many_writers(written: Path) -> None:
    with opened(written), pytest.raises(LogBusy, match="other processes have it open; end them first"):
        journal.lock(written / "journal", alone=True)
    descriptor = journal.lock(written / "journal", alone=True)
    with pytest.raises(LogBusy, match="it is being recovered; wait for that"):
        opened(written)
    os.close(descriptor)
    agree(written, "1", "2", "3")


@pytest.mark.parametrize("short", [False, True], ids=["error", "short"])
def test_a_line_that_cannot_be_written_is_no_commit(
    written: Path, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    def write(file: int, data: bytes) -> int:
        if not short:
            raise OSError(errno.EIO, "no")
        return os.pwrite(file, data[:40], os.fstat(file).st_size)

    with opened(written) as log:
        append(log, "4")
        with monkeypatch.context() as context:
            context.setattr(os, "write", write)
            with pytest.raises(LogUnavailable, match="could not be written"):
                append(log, "5")
        with pytest.raises(LogUnavailable, match="is closed"):
            append(log, "5")
    agree(written, "1", "2", "3", "4")
    assert not (written / "quarantine").exists()


def test_a_journal_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("a file")
    with pytest.raises(LogUnavailable, match="cannot be opened"):
        opened(tmp_path)
    assert not (tmp_path / "log").exists()


def test_a_mend_that_is_interrupted_leaves_no_gap(
    tmp_path: Path, another_boot: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr(segment, "compress", lambda path: None)
        with opened(tmp_path, 1) as log:
            append(log, "1", "2", "3", "4")
    another_boot()
    middle = segment.listed(tmp_path / "journal")[1]
    middle.write_bytes(bytes(middle.stat().st_size))
    take = Quarantine.take
    with monkeypatch.context() as context:
        taken: list[Path] = []

        def once(aside: Quarantine, path: Path) -> None:
            if taken:
                raise OSError(errno.EIO, "no")
            taken.append(path)
            take(aside, path)

        context.setattr(Quarantine, "take", once)
        with pytest.raises(LogUnavailable, match="could not be brought to agree"):
            opened(tmp_path)
    agree(tmp_path, "1", "2", "3", "4")


def test_a_log_that_cannot_be_opened_is_reported_though_its_journal_cannot_be_synced(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = newest(written)
    path.write_bytes(b"".join(lines(written)[:-1]))

    def doorbell(folder: Path) -> None:
        monkeypatch.setattr(os, "fsync", fail)
        raise LogUnavailable("no bell")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(lmdb_log, "Doorbell", doorbell)
    with pytest.raises(LogUnavailable, match="no bell"):
        Log(written / "log", journal=written / "journal", doorbells=written)
    monkeypatch.undo()
    agree(written, "1", "2", "3")


def test_a_map_that_is_full_at_the_commit_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as log:
        append(log, "1")
        layout = log._layout
        writing, grown = layout.writing, list[int]()

        class Full:
            """A transaction that finds no room when it is committed."""

            def __init__(self, txn: lmdb.Transaction[bytes]) -> None:
                self._txn = txn

            def commit(self) -> None:
                if grown:
                    self._txn.commit()
                else:
                    raise lmdb.MapFullError("full")

            def __getattr__(self, name: str) -> object:
                return getattr(self._txn, name)

        @contextlib.contextmanager
        def full() -> Iterator[Full]:
            with writing() as txn:
                yield Full(txn)

        monkeypatch.setattr(layout, "writing", full)
        monkeypatch.setattr(layout, "grow", lambda: grown.append(len(lines(tmp_path))))
        append(log, "2", "3")
    assert grown == [3]  # the line of the commit that failed was there
    agree(tmp_path, "1", "2", "3")
    assert quarantined(tmp_path) == []
    assert caplog.records == []
