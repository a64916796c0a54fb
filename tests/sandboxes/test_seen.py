"""What was seen of a workspace: kept, found again, and not believed when it is anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandkeep.sandboxes import seen
from sandkeep.sandboxes.seen import Folder, Seen, SeenStore


def a_folder(number: int = 0, **folders: Folder) -> Folder:
    names = [b"a\xff", b"b"]
    return Folder(5, names, [-1, 2**62], {b"b": 7}, {k.encode(): v for k, v in folders.items()}, f"{number:064x}", 2, 9)


SEEN = Seen(1, 2, b"epoch", "d" * 64, 5, a_folder(0, x=a_folder(1, y=a_folder(2)), z=a_folder(3, w=a_folder(4))))


def test_what_is_kept_is_found_again_by_another(tmp_path: Path) -> None:
    SeenStore(tmp_path / "seen").keep("task", SEEN, 1000)
    assert SeenStore(tmp_path / "seen").of("task") == SEEN
    assert SeenStore(tmp_path / "seen").of("other") is None
    assert (tmp_path / "seen" / "task").stat().st_mode & 0o777 == 0o600
    assert len(list((tmp_path / "seen").iterdir())) == 1


def test_an_empty_folder_is_found_again(tmp_path: Path) -> None:
    empty = Seen(1, 2, b"epoch", "d" * 64, 5, Folder(0, [], [], {}, {}, "", 0, 0))
    SeenStore(tmp_path).keep("task", empty, 1000)
    assert SeenStore(tmp_path).of("task") == empty


def test_few_changes_are_not_written_until_there_are_many(tmp_path: Path) -> None:
    store = SeenStore(tmp_path)
    for _ in range(10):
        store.keep("task", SEEN, 1)
        assert store.of("task") == SEEN
        assert not (tmp_path / "task").exists()
    store.keep("task", SEEN, 1)
    assert (tmp_path / "task").exists()


@pytest.mark.parametrize("place", [0, 31, 32, 40, -1])
def test_a_file_that_is_damaged_is_none(tmp_path: Path, place: int) -> None:
    SeenStore(tmp_path).keep("task", SEEN, 1000)
    data = bytearray((tmp_path / "task").read_bytes())
    data[place] ^= 1
    (tmp_path / "task").write_bytes(data)
    assert SeenStore(tmp_path).of("task") is None
    (tmp_path / "task").write_bytes(data[:20])
    assert SeenStore(tmp_path).of("task") is None


def test_nothing_is_believed_after_the_machine_was_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SeenStore(tmp_path).keep("task", SEEN, 1000)
    monkeypatch.setattr(seen, "this_boot", lambda: "another")
    assert SeenStore(tmp_path).of("task") is None


@pytest.mark.parametrize(
    ("changed", "now", "old"),
    [
        (5_000_000_001, 5_000_000_001, False),
        (5_000_000_001, 5_020_000_001, False),
        (5_000_000_001, 5_020_000_002, True),
        (5_000_000_001, 4_000_000_000, False),
        (5_000_000_000, 6_900_000_000, False),
        (5_000_000_000, 7_000_000_001, True),
    ],
)
def test_a_change_is_old_when_the_next_has_another_time(changed: int, now: int, old: bool) -> None:
    assert seen.is_old(changed, now) is old


def test_what_is_forgotten_is_gone(tmp_path: Path) -> None:
    store = SeenStore(tmp_path)
    store.keep("task", SEEN, 1000)
    store.forget("task")
    assert (store.of("task"), SeenStore(tmp_path).of("task")) == (None, None)
    store.forget("never there")


def test_only_a_few_are_kept_in_memory(tmp_path: Path) -> None:
    store = SeenStore(tmp_path)
    for number in range(20):
        store.keep(f"{number}", SEEN, 0)
    assert [store.of(f"{number}") for number in (0, 19)] == [None, SEEN]
