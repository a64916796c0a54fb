"""The heartbeat: what is added is called again and again until it is taken out, or refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from sandkeep.events import StaleFence
from sandkeep.sandboxes.heartbeat import Heartbeat

from .support import eventually


@pytest.fixture
def heartbeat() -> Iterator[Heartbeat]:
    made = Heartbeat()
    yield made
    made.close()


def test_each_is_called_in_its_own_period_until_it_is_taken_out(heartbeat: Heartbeat) -> None:
    often: list[int] = []
    seldom: list[int] = []
    heartbeat.add(3600.0, lambda: seldom.append(1))
    number = heartbeat.add(0.01, lambda: often.append(1))
    eventually(lambda: len(often) > 3)
    heartbeat.remove(number)
    other: list[int] = []
    heartbeat.add(0.01, lambda: other.append(1))
    eventually(lambda: len(other) > 1)
    count = len(often)
    eventually(lambda: len(other) > 4)
    assert (len(often), seldom) == (count, [])


def test_what_is_refused_is_not_tried_again_and_stops_no_other(heartbeat: Heartbeat) -> None:
    refusals: list[int] = []
    others: list[int] = []

    def refuse() -> None:
        refusals.append(1)
        raise StaleFence("it was lost")

    heartbeat.add(0.01, refuse)
    heartbeat.add(0.01, lambda: others.append(1))
    eventually(lambda: len(others) > 5)
    assert refusals == [1]


def test_many_that_come_and_go_leave_nothing(heartbeat: Heartbeat) -> None:
    for _ in range(1000):
        heartbeat.remove(heartbeat.add(3600.0, lambda: None))
    assert len(heartbeat._due) <= 65


def test_one_thread_serves_all_and_ends(heartbeat: Heartbeat) -> None:
    before = threading.active_count()
    for _ in range(10):
        heartbeat.add(3600.0, lambda: None)
    assert threading.active_count() == before + 1
    heartbeat.close()
    heartbeat.close()
    assert threading.active_count() == before
