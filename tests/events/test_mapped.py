from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sandkeep.events import LmdbLog, lmdb_log, mapped

from .support import done, words

MIB = 1 << 20
PAGE = mmap.PAGESIZE
Log = LmdbLog[None]


def resident(file: Path) -> int:
    """Bytes of all maps of `file` that are in this process, as smaps of proc(5) has them."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            ours = line.endswith(str(file))
        elif ours and fields[0] == "Rss:":
            found += int(fields[1]) * 1024
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of 64 pages, each full of its own number."""
    path = tmp_path / "a file"
    path.write_bytes(b"".join(bytes([number]) * PAGE for number in range(64)))
    return path


@pytest.fixture
def shared(file: Path) -> Iterator[mmap.mmap]:
    """The file, mapped as LMDB does it, and read."""
    with file.open("rb") as opened, closing(mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)) as map:
        assert bytes(map) == file.read_bytes()
        yield map


def test_what_was_read_is_given_back_and_read_again(file: Path, shared: mmap.mmap) -> None:
    assert resident(file) == 64 * PAGE
    mapped.release(str(file))
    assert resident(file) == 0
    assert bytes(shared) == file.read_bytes()


def test_changes_in_private_maps_stay(file: Path, shared: mmap.mmap) -> None:
    with file.open("rb") as opened, closing(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)) as private:
        private[:4] = b"mine"
        mapped.release(str(file))
        assert private[:4] == b"mine"
        assert shared[:4] == bytes(4)


def test_maps_of_other_files_stay(file: Path, shared: mmap.mmap, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(PAGE))
    mapped.release(str(other))
    mapped.release(str(tmp_path / "none"))
    assert resident(file) == 64 * PAGE


def test_a_long_replay_takes_little_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_log, "_MAPPED_BYTES", MIB)
    with closing(Log(path)) as log:
        for number in range(16):
            log.append("task/a", done(*[f"{number}" * 1000] * 1000), actor="me")
    most = count = 0
    with closing(Log(path)) as log:
        for record in log.read():
            count += 1
            if record.position % 500 == 0:
                most = max(most, resident(path / "data.mdb"))
    assert count == 16_000
    assert 0 < most < 6 * MIB


def test_replays_go_on_while_the_map_grows(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_log, "_MAPPED_BYTES", 1)
    ended, wrong = threading.Event(), []

    def replays() -> None:
        while not ended.is_set():
            read = words(log.read())
            if read != [f"{number}" for number in range(1, len(read) + 1)]:
                wrong.append(read)

    log.append("task/a", done("1"), actor="me")
    with_map = log._layout.env.info()["map_size"]
    readers = [threading.Thread(target=replays) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(2, 40):
        log.append("task/a", done(f"{number}"), actor="me")
        if number < 6:
            log._layout.grow()
    ended.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert log._layout.env.info()["map_size"] == with_map << 4
    assert words(log.read()) == [f"{number}" for number in range(1, 40)]
