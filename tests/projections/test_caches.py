from __future__ import annotations

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import CacheChoice, Limits
from sandkeep.projections import caches

from .support import created, folded

PIP, NPM = CacheChoice("pip", True), CacheChoice("npm")
STARTED = ev.SandboxRequested("i", "sha256:x", Limits(0, 0, 0, 0))


def facts(*events: Event) -> list[tuple[str, Event]]:
    return [("task/a", created("a")), *(("task/a", event) for event in events)]


def test_a_task_has_what_it_was_given_until_it_is_cleaned_up() -> None:
    assert caches.choices(folded(facts()), "a") == ()
    state = folded(facts(ev.CachesChosen((NPM, PIP)), ev.TaskCompleted("done")))
    assert caches.choices(state, "a") == (NPM, PIP)
    assert dict(caches.given(state)) == {"a": (NPM, PIP)}
    state = folded(facts(ev.CachesChosen((NPM, PIP)), ev.TaskCompleted("done"), ev.TaskCleaned("i")))
    assert dict(caches.given(state)) == {}
    assert [each.tasks for each in caches.uses(state)] == [1, 1]


def test_uses_are_counted_by_cache() -> None:
    given = [*facts(ev.CachesChosen((PIP,)), STARTED), ("task/b", ev.CachesChosen((PIP, NPM)))]
    npm, pip = caches.uses(folded(given))
    assert (npm.name, npm.tasks, npm.used_ns, npm.pruned) == ("npm", 1, 0, 0)
    assert (pip.name, pip.tasks) == ("pip", 2)
    assert pip.used_ns > 0


def test_what_was_removed_is_added_up_and_stays_a_number_that_can_be_stored() -> None:
    most = 2**63 - 1
    pruned = ev.CachePruned("size", 2, 100, 50)
    (pip,) = caches.uses(folded([("cache/pip", pruned), ("cache/pip", pruned), ("task/pip", pruned)]))
    assert (pip.pruned, pip.pruned_bytes) == (2, 200)
    (pip,) = caches.uses(folded([("cache/pip", ev.CachePruned("size", most, most, 0))] * 2))
    assert pip.pruned_bytes == most
