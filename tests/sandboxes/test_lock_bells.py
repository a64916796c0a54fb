"""The bells of locks: who is woken by which, here and in another process's place, and how many are kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep.sandboxes import lock_bells
from sandkeep.sandboxes.lock_bells import Bells

PATIENCE = 30.0


@pytest.fixture
def bells(tmp_path: Path) -> Iterator[Bells]:
    made = Bells(tmp_path / "locks")
    yield made
    made.close()


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Bells]:
    """As another process would have them."""
    made = Bells(tmp_path / "locks")
    yield made
    made.close()


def test_a_ring_wakes_those_who_wait_for_that_lock(bells: Bells, others: Bells) -> None:
    with bells.heard("a") as mine, bells.heard("b") as unconcerned, others.heard("a") as theirs:
        others.ring("a")
        assert mine.wait(PATIENCE)
        assert theirs.is_set()
        mine.clear()
        bells.ring("a")
        assert mine.is_set()
        assert not unconcerned.is_set()


def test_who_waits_no_more_is_not_woken(bells: Bells) -> None:
    with bells.heard("a") as first:
        pass
    with bells.heard("a") as second:
        bells.ring("a")
    assert second.is_set()
    assert not first.is_set()


def test_to_ring_when_nobody_ever_waited_is_harmless(bells: Bells, tmp_path: Path) -> None:
    bells.ring("a")
    assert not (tmp_path / "locks").exists()


def test_the_bells_that_nobody_waits_for_are_closed_when_there_are_many(
    bells: Bells, others: Bells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_bells, "MOST", 3)
    before = threading.active_count()
    with bells.heard("waited for") as woken:
        for number in range(10):
            with bells.heard(f"{number}"):
                pass
        assert threading.active_count() - before <= 3
        assert sum(1 for each in (tmp_path / "locks").rglob("*") if each.is_socket()) <= 3
        others.ring("waited for")
        assert woken.wait(PATIENCE)
    bells.close()
    assert threading.active_count() == before
