from __future__ import annotations

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import ImageCounts, ImageVersion, images

from .support import folded, records

TAG, OTHER = "sandkeep/web:0123456789ab", "sandkeep/web:ba9876543210"


def used(tag: str) -> Event:
    return ev.TaskCreated(intent="i", title="t", source=None, image=tag)


def made(intent: str, tag: str, wanted: bool = False) -> list[tuple[str, Event]]:
    return [
        ("image/web", ev.ImageRequested(intent, "dockerfile", "", wanted)),
        ("image/web", ev.ImageBuilt(intent, tag, f"id of {tag}", 7, "dockerfile", "", 9, False)),
    ]


def removed(intent: str, tag: str) -> list[tuple[str, Event]]:
    return [
        ("image/web", ev.ImageRemovalRequested(intent, tag, "budget")),
        ("image/web", ev.ImageRemoved(intent, tag)),
    ]


def test_a_version_is_what_was_made_and_who_used_it() -> None:
    state = folded([*made("1", TAG), ("task/a", used(TAG)), ("task/b", used(TAG)), ("task/c", used("python:3"))])
    assert images.find(state, TAG) == ImageVersion(
        "web", TAG, f"id of {TAG}", 7, "dockerfile", "dockerfile", "", 9, 2, 200, 2, 400
    )
    assert list(images.versions(state)) == [images.find(state, TAG)]
    assert images.find(state, "python:3") is None
    assert list(images.pending(state)) == []


def test_the_version_that_was_made_last_is_the_current_one() -> None:
    state = folded([*made("1", TAG), *made("2", OTHER)])
    assert (current := images.current(state, "web")) is not None
    assert current.tag == OTHER
    state = folded([*made("1", TAG), *made("2", OTHER), *made("3", TAG)])
    assert (current := images.current(state, "web")) is not None
    assert (current.tag, current.position) == (TAG, 6)
    state = folded([*made("1", TAG), *made("2", OTHER), *removed("3", OTHER)])
    assert (current := images.current(state, "web")) is not None
    assert current.tag == TAG
    assert images.current(folded([*made("1", TAG), *removed("2", TAG)]), "web") is None
    assert images.current(folded([("task/a", used(TAG))]), "web") is None


def test_a_version_that_is_made_again_is_there_again_and_keeps_its_uses() -> None:
    state = folded([*made("1", TAG), ("task/a", used(TAG)), *removed("2", TAG), *made("3", TAG)])
    assert (version := images.find(state, TAG)) is not None
    assert (version.removed, version.uses, version.position) == (0, 1, 7)


def test_the_hit_rate_is_the_share_of_tasks_that_did_not_wait() -> None:
    events = [*made("1", TAG, wanted=True), *(("task/a", used(TAG)) for _ in range(4)), *made("2", OTHER)]
    [counts] = images.counts(folded(events))
    assert counts == ImageCounts("web", uses=4, misses=1, builds=2)
    assert counts.hit_rate == 0.75
    [counts] = images.counts(folded(made("1", TAG, wanted=True)))
    assert counts.hit_rate is None
    [counts] = images.counts(folded([*made("1", TAG, True), *made("2", TAG, True), ("task/a", used(TAG))]))
    assert counts.hit_rate == 0  # a task was refused after its image had been made


def test_failures_and_removals_are_counted_and_settled() -> None:
    request, failure = ev.ImageRequested("1", "recipe", "r", False), ev.ImageFailed("1", "c", "m")
    removal, kept = ev.ImageRemovalRequested("2", TAG, "budget"), ev.ImageRemovalFailed("2", "c", "m")
    state = folded([("image/web", each) for each in (request, removal)])
    assert [(each.intent, each.name, each.tag) for each in images.pending(state)] == [
        ("1", "web", ""),
        ("2", "web", TAG),
    ]
    assert images.is_pending(state, "1")
    state = folded([("image/web", each) for each in (request, removal, failure, kept)])
    assert list(images.pending(state)) == []
    assert list(images.counts(state)) == [ImageCounts("web", failures=1)]
    assert not images.is_pending(state, "1")


def test_what_is_on_another_stream_or_called_otherwise_is_not_followed() -> None:
    strange = [
        ("image/web", ev.ImageBuilt("1", "sandkeep/other:0123456789ab", "i", 1, "o", "", 1, False)),
        ("image/web", ev.ImageRemoved("1", "x" * 3000)),
        ("keep", ev.ImageBuilt("1", TAG, "i", 1, "o", "", 1, False)),
        ("image/web", used(TAG)),
        ("task/a", used("sandkeep/" + "a" * 3000 + ":0123456789ab")),
        ("task/a", ev.ImageBuilt("1", TAG, "i", 1, "o", "", 1, False)),
    ]
    assert list(folded(strange).scan(b"images/")) == []


def test_a_batch_is_folded_as_its_records_are_one_by_one() -> None:
    events = [
        ("task/a", used(TAG)),
        *made("1", TAG),
        ("task/b", used(TAG)),
        ("task/c", used(OTHER)),
        *removed("2", TAG),
    ]
    one_by_one = type(folded([]))()
    for record in records(events):
        images.Images().apply(one_by_one, record)
    assert list(one_by_one.scan(b"images/")) == list(folded(events).scan(b"images/"))
    assert len(list(one_by_one.scan(b"images/"))) == 3
