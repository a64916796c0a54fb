"""The fold of resources: what is promised, what is said, and what is remembered."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import Extension, Use, resources
from sandkeep.projections.resources import KEPT_PEAKS, Near

from ..events import strategies
from .support import created, folded

LEASE = ev.Lease("boot", 100)
SMALL, LARGE = ev.Limits(100, 1, 1, 1), ev.Limits(300, 1, 1, 1, swap_bytes=50)


def started(intent: str = "i", limits: ev.Limits = SMALL, tags: tuple[str, ...] = ()) -> list[Event]:
    return [ev.SandboxRequested(intent, "image", limits, tags), ev.SandboxStarted(intent, f"c{intent}")]


def after(*events: Event) -> Use:
    """The resources of task `a` after these events."""
    found = resources.find(folded([("task/a", event) for event in (created("a"), *events)]), "a")
    assert found is not None
    return found


def peaks(*events: Event) -> tuple[int, ...]:
    return resources.peaks_of(folded([("task/a", event) for event in events]), "image", "image")


def test_a_task_of_which_there_is_nothing_to_say_costs_nothing() -> None:
    state = folded([("task/a", created("a")), ("task/a", ev.TaskTagged(("x",), ()))])
    assert resources.find(state, "a") is None
    assert list(state.scan(b"resources/")) == []


def test_memory_is_promised_from_the_request_to_the_end() -> None:
    assert after(ev.SandboxRequested("i", "image", LARGE)).promised == 350
    for end in (ev.SandboxLost("ci", "x"), ev.SandboxRemoved("ci"), ev.SandboxStopped("s"), ev.TaskCleaned("x")):
        assert after(*started(limits=LARGE), end).promised == 0
    assert after(ev.SandboxRequested("i", "image", LARGE), ev.SandboxFailed("i", "x", "y")).promised == 0
    assert after(*started(limits=LARGE), ev.SandboxLost("other", "x")).promised == 350


def test_while_it_changes_the_larger_is_promised() -> None:
    asked = ev.LimitsRequested("l", LARGE, "ci", "")
    assert after(*started(), asked).promised == 350
    assert after(*started(), asked, ev.LimitsFailed("l", "x", "y")).promised == 100
    done = after(*started(), asked, ev.LimitsSet("l"))
    assert (done.promised, done.asked, done.limits) == (350, LARGE, LARGE)
    assert after(*started(limits=LARGE), ev.LimitsRequested("l", SMALL, "ci", "")).promised == 350


def test_what_was_granted_is_promised() -> None:
    request = ev.ExtensionRequested("x", "ci", 99, 100, 200, LEASE)
    assert after(*started(), request).promised == 100
    assert after(*started(), request, ev.ExtensionGranted("x", 200, "")).promised == 200
    ended = after(*started(), request, ev.ExtensionGranted("x", 200, ""), ev.ExtensionEnded("x", "resumed"))
    assert (ended.promised, ended.extension) == (100, None)


def test_limits_that_are_set_without_a_sandbox_are_for_the_next() -> None:
    found = after(ev.LimitsRequested("l", LARGE, None, ""), ev.LimitsSet("l"))
    assert (found.asked, found.limits, found.promised) == (LARGE, None, 0)


def test_the_first_answer_counts() -> None:
    request = ev.ExtensionRequested("x", "ci", 99, 100, 200, LEASE)
    denied, granted = ev.ExtensionDenied("x", True, "no"), ev.ExtensionGranted("x", 200, "yes")
    found = after(*started(), request, ev.ExtensionPrepared("x", True, "cp", ""), denied, granted).extension
    assert found == Extension("x", "ci", 99, 100, 200, LEASE, 400, True, "cp", None, "no", True)
    assert found.open is False
    other = after(*started(), request, ev.ExtensionGranted("y", 200, "")).extension
    assert other is not None
    assert other.open


def test_what_was_said_ends_with_the_sandbox_but_for_the_disk() -> None:
    said = [ev.LimitNeared("ci", what, 80, 8, 10) for what in ("memory", "disk")]
    found = after(*started(), *said, ev.SandboxLost("ci", "x"))
    assert found.near == (Near("disk", 80, 500),)
    assert after(*started(), *said, ev.LimitEased("ci", "disk", 1, 10)).near == (Near("memory", 80, 400),)


def test_peaks_and_sums_outlive_sandboxes() -> None:
    first = [*started("1"), ev.SandboxMeasured("c1", 50, 5, 7, 2, 1), ev.SandboxRemoved("c1")]
    second = [*started("2"), ev.SandboxMeasured("c2", 40, 9, 1, 1, 0)]
    found = after(*first, *second)
    assert (found.memory_bytes, found.pids, found.cpu_ns, found.throttled_ns, found.oom_kills) == (50, 9, 7, 2, 1)
    done = after(*first, *second, ev.SandboxLost("c2", "x"))
    assert (done.cpu_ns, done.throttled_ns, done.oom_kills) == (8, 3, 1)


def test_peaks_are_remembered_by_image_and_by_tag_and_not_without_end() -> None:
    history: list[Event] = [created("a")]
    for number in range(KEPT_PEAKS + 3):
        measured = ev.SandboxMeasured(f"c{number}", number, 1, 1, 1, 1)
        history += [*started(str(number), tags=("t",)), measured, ev.SandboxRemoved(f"c{number}")]
    assert peaks(*history) == tuple(range(3, KEPT_PEAKS + 3))
    state = folded([("task/a", event) for event in history])
    assert resources.peaks_of(state, "tag", "t") == peaks(*history)
    assert resources.peaks_of(state, "tag", "u") == resources.peaks_of(state, "image", "t") == ()


RESOURCE = st.one_of(
    *(
        strategies.of(cls)
        for cls in strategies.TYPES
        if cls.__module__.endswith((".resource", ".task")) and not issubclass(cls, ev.Output)
    )
)


@given(st.lists(st.tuples(st.sampled_from(["task/a", "task/b"]), RESOURCE), max_size=30))
def test_every_history_has_a_state_and_its_indexes_agree(events: list[tuple[str, Event]]) -> None:
    state = folded([("task/a", created("a")), *events])
    found = [resources.find(state, task) for task in ("a", "b")]
    live = [each.task for each in found if each is not None and each.live]
    assert [each.task for each in resources.live(state)] == live
    assert all(each is None or msgspec.msgpack.encode(each) for each in found)
