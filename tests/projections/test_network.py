from __future__ import annotations

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Destination, Service
from sandkeep.projections import NetworkPolicy, Traffic, network

from .support import created, folded

HOSTS = (Destination("example.org", (443, 80)), Destination("db.internal", (5432,), True))
ALLOW = ev.NetworkPolicySet("allow", HOSTS)


def facts(*events: Event) -> list[tuple[str, Event]]:
    return [("task/a", created("a")), ("task/b", ALLOW), *(("task/a", event) for event in events)]


def test_a_task_may_reach_what_was_set_last_and_nothing_before() -> None:
    assert network.policy(folded(facts()), "a") == NetworkPolicy("none", ())
    state = folded(facts(ev.NetworkPolicySet("open", ()), ALLOW))
    assert network.policy(state, "a") == NetworkPolicy("allow", HOSTS)
    assert dict(network.policies(state)) == {"a": NetworkPolicy("allow", HOSTS), "b": NetworkPolicy("allow", HOSTS)}
    state = folded(facts(ALLOW, ev.NetworkPolicySet("none", ())))
    assert network.policy(state, "a") == NetworkPolicy()
    assert list(dict(network.policies(state))) == ["b"]


SERVICES = (Service("db", 5432, task="b"), Service("pg", 5432, container="pg"))


def test_services_belong_to_the_policy_that_they_were_set_with() -> None:
    set_ = (ev.NetworkPolicySet("services", ()), ev.ServicesSet(SERVICES))
    assert network.policy(folded(facts(*set_)), "a") == NetworkPolicy("services", (), SERVICES)
    assert network.policy(folded(facts(*set_, ALLOW)), "a") == NetworkPolicy("allow", HOSTS)
    both = folded(facts(*set_, ALLOW, ev.ServicesSet(SERVICES[:1])))
    assert network.policy(both, "a") == NetworkPolicy("allow", HOSTS, SERVICES[:1])
    closed = folded(facts(*set_, ev.NetworkPolicySet("none", ()), ev.ServicesSet(SERVICES)))
    assert network.policy(closed, "a") == NetworkPolicy()


def test_what_a_task_offers_is_what_it_offered_last_until_it_ends() -> None:
    offered = (ev.PortsOffered((80,)), ev.PortsOffered((5432, 8000)))
    state = folded(facts(*offered))
    assert (network.offers(state, "a"), network.offers(state, "b")) == ((5432, 8000), ())
    assert network.offers(folded(facts(*offered, ALLOW)), "a") == (5432, 8000)
    for end in (ev.PortsOffered(()), ev.TaskCompleted("done"), ev.TaskFailed("given up"), ev.TaskCleaned("intent")):
        assert network.offers(folded(facts(*offered, end)), "a") == ()


def test_a_policy_ends_with_its_task_and_the_totals_stay() -> None:
    for end in (ev.TaskCompleted("done"), ev.TaskFailed("given up"), ev.TaskCleaned("intent")):
        state = folded(facts(ALLOW, ev.ConnectionDenied("evil.test", 443, "host-not-listed"), end))
        assert list(dict(network.policies(state))) == ["b"]
        assert network.traffic(state, "a") == Traffic(denied=1)


def test_traffic_is_the_sum_of_what_was_recorded_one_by_one_and_in_all() -> None:
    state = folded(
        facts(
            ev.ConnectionAllowed("1", "example.org", 443, "93.184.215.14"),
            ev.ConnectionClosed("1", "example.org", 443, 10, 200, 1, "ended"),
            ev.ConnectionDenied("evil.test", 443, "host-not-listed"),
            ev.ConnectionsSummarised(3, 40, 500, 6000, ("evil.test:443",), 60),
        )
    )
    assert network.traffic(state, "a") == Traffic(4, 41, 510, 6200)
    assert network.traffic(state, "b") == Traffic()


def test_totals_stay_numbers_that_can_be_stored_whatever_is_claimed() -> None:
    most = 2**63 - 1
    state = folded(facts(*[ev.ConnectionsSummarised(most, most, most, most, (), 1)] * 3))
    assert network.traffic(state, "a") == Traffic(most, most, most, most)


def test_what_stands_on_another_stream_is_no_tasks() -> None:
    state = folded([("keep", ALLOW), ("image/a", ALLOW), ("keep", ev.ConnectionDenied("evil.test", 1, "no-network"))])
    assert list(state.scan(b"network/")) == []
