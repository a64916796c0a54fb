"""The folder of a cache, as hostile tasks leave it: measured, pruned, emptied, and nothing outside of it touched."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandkeep.sandboxes import cache_folder
from sandkeep.sandboxes.cache_folder import Content, content, empty, prune

from .support import listing

KIB = 1 << 10
HOUR = 3600.0


def write(path: Path, kib: int, age: float = 0.0) -> Path:
    """A file of this size that was last used so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(kib * KIB))
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    made = tmp_path / "cache"
    made.mkdir()
    return made


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What nothing that is done to the cache may touch."""
    write(tmp_path / "outside" / "precious", 64, 100 * HOUR)
    (tmp_path / "outside" / "folder").mkdir()
    return tmp_path / "outside"


def test_what_it_takes_is_what_the_disk_gives_for_it(cache: Path) -> None:
    assert content(cache) == Content()
    write(cache / "a" / "b", 100)
    os.link(cache / "a" / "b", cache / "again")
    with open(cache / "holes", "wb") as file:
        file.truncate(1 << 40)
    found = content(cache)
    assert found.files == 4  # the folder, two names of one file, and the one with holes
    assert 100 * KIB <= found.bytes <= 120 * KIB


def test_what_was_not_used_for_longest_goes_until_there_is_some_room(cache: Path) -> None:
    for hours in range(10):
        write(cache / f"{hours}" / "file", 100, hours * HOUR)
    removed, left = prune(cache, 500 * KIB)
    there = sorted(int(path.parent.name) for path in cache.glob("*/file"))
    assert there == [0, 1, 2, 3]  # of 450 KiB
    assert removed.bytes >= 600 * KIB
    assert left.bytes == content(cache).bytes <= 450 * KIB
    assert prune(cache, 500 * KIB) == (Content(), left)


def test_what_was_read_lately_stays(cache: Path) -> None:
    old, read = write(cache / "old", 100, 50 * HOUR), write(cache / "read", 100, 90 * HOUR)
    os.utime(read, (time.time(), read.stat().st_mtime))
    prune(cache, 150 * KIB)
    assert (old.exists(), read.exists()) == (False, True)


def test_times_in_the_future_or_before_all_others_harm_nobody(cache: Path) -> None:
    future, past = write(cache / "future", 100, -(10**9)), write(cache / "past", 100)
    os.utime(past, (-(2**31), -(2**31)))
    prune(cache, 150 * KIB)
    assert (future.exists(), past.exists()) == (True, False)


def test_only_as_much_goes_as_has_to_of_what_is_equally_old(cache: Path) -> None:
    for number in range(10):
        write(cache / str(number), 100, 30 * HOUR)
    prune(cache, 500 * KIB)
    assert len(list(cache.iterdir())) == 4


def test_old_folders_go_with_what_was_in_them_and_new_ones_stay(cache: Path) -> None:
    write(cache / "old" / "inner" / "file", 100, 50 * HOUR)
    for folder in (cache / "old" / "inner", cache / "old"):
        os.utime(folder, (time.time() - 50 * HOUR,) * 2)
    (cache / "new").mkdir()
    write(cache / "new-file", 100)
    prune(cache, 140 * KIB)
    assert sorted(path.name for path in cache.iterdir()) == ["new", "new-file"]


def test_links_are_removed_and_never_followed(cache: Path, outside: Path) -> None:
    before = listing(outside)
    (cache / "file").symlink_to(outside / "precious")
    (cache / "folder").symlink_to(outside)
    (cache / "up").symlink_to("..")
    os.mkfifo(cache / "fifo")
    assert content(cache).bytes <= 16 * KIB
    removed, left = empty(cache)
    assert (removed.files, left) == (4, Content())
    assert listing(outside) == before


@pytest.mark.parametrize("look", [content, empty, lambda cache: prune(cache, 0)])
def test_a_folder_that_becomes_a_link_meanwhile_leads_nowhere(
    cache: Path, outside: Path, look: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, stat = listing(outside), os.stat
    write(cache / "trap" / "precious", 8)

    def swapped(name: str, **options: Any) -> os.stat_result:
        found = stat(name, **options)
        if name == "trap" and not (cache / "trap").is_symlink():
            (cache / "trap").rename(cache / "aside")
            (cache / "trap").symlink_to(outside)
        return found

    monkeypatch.setattr(os, "stat", swapped)
    look(cache)
    assert listing(outside) == before


def test_a_folder_that_is_swapped_for_a_link_all_the_time_leads_nowhere(cache: Path, outside: Path) -> None:
    before, stop = listing(outside), threading.Event()

    def swap() -> None:
        for number in itertools.cycle(range(50)):  # no more than can be removed as fast as they come
            if stop.is_set():
                return
            with contextlib.suppress(OSError):
                (cache / "trap" / "folder").mkdir(parents=True)
                (cache / "trap").rename(cache / f"aside-{number}")
            with contextlib.suppress(OSError):
                (cache / "trap").symlink_to(outside)
                (cache / "trap").unlink()

    hostile = threading.Thread(target=swap)
    hostile.start()
    try:
        for _ in range(100):
            empty(cache)
            prune(cache, 0)
    finally:
        stop.set()
        hostile.join()
    assert listing(outside) == before
    assert cache.is_dir()


def test_a_pass_over_a_cache_ends_however_much_comes_meanwhile(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        write(cache / f"{number}", 1)
    monkeypatch.setattr(cache_folder, "MOST_ENTRIES", 5)
    monkeypatch.setattr(cache_folder, "_PASSES", 1)
    assert empty(cache)[0].files == 5
    assert len(list(cache.iterdir())) == 15


def test_what_lies_deeper_than_any_tool_makes_it_is_found_too(cache: Path) -> None:
    held = os.open(cache, os.O_RDONLY)
    for _ in range(300):  # a path that is too long to be named
        os.mkdir("a-name-that-is-rather-long", dir_fd=held)
        inner = os.open("a-name-that-is-rather-long", os.O_RDONLY, dir_fd=held)
        os.close(held)
        held = inner
    os.close(held)
    deep, passes = content(cache).files, 0
    while list(cache.iterdir()):
        empty(cache)
        passes += 1
        assert passes < 10
    assert deep >= cache_folder.MOST_DEPTH


def test_a_folder_that_its_owner_has_closed_is_opened(unprivileged: Path) -> None:
    cache = unprivileged / "cache"
    write(cache / "closed" / "file", 100)
    (cache / "closed").chmod(0)
    cache.chmod(0)
    assert content(cache).bytes >= 100 * KIB
    assert empty(cache)[1] == Content()


def test_a_cache_of_too_many_names_is_emptied(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_folder, "MOST_ENTRIES", 20)
    for number in range(20):
        (cache / str(number)).touch()
    assert prune(cache, 1 << 40)[0] == Content()
    (cache / "more").touch()
    removed, left = prune(cache, 1 << 40)
    assert (removed.files, left) == (21, Content())


def test_memory_does_not_grow_with_the_files(cache: Path) -> None:
    for number in range(2000):
        (cache / str(number)).touch()
        os.utime(cache / str(number), (time.time() - number * 1000,) * 2)
    assert len(cache_folder._ages(cache, time.time())) < 250
