from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import BadInput, LimitReached
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Service
from sandkeep.projections import NetworkPolicy
from sandkeep.sandboxes.errors import PolicyDenied
from sandkeep.sandboxes.network_policy import policy_event, policy_events, rule
from sandkeep.sandboxes.service import (
    MOST_OFFERS,
    MOST_SERVICES,
    check_ports,
    hosts,
    places,
    service,
    services_event,
    show,
    target,
)
from sandkeep.sandboxes.settings import NetworkGrants

NOTHING = NetworkGrants()
GRANTED = NetworkGrants(open=True, private=("registry:443",), containers=("pg:5432",))
TASK = "0123456789ab"
DB, WEB = f"db=task/{TASK}:5432", f"web=task/{TASK}:8000"


def policy(*services: str, mode: str = "services", allow: tuple[str, ...] = ()) -> NetworkPolicy:
    event = policy_event(mode, allow, (), GRANTED)
    found = services_event(event, services, GRANTED)
    return NetworkPolicy(event.mode, event.allow, () if found is None else found.services)


@pytest.mark.parametrize(
    ("text", "found", "what"),
    [
        (DB, Service("db", 5432, task=TASK), f"task/{TASK}"),
        ("my-db2=task/0123:1", Service("my-db2", 1, task="0123"), "task/0123"),
        ("q=container/My_pg.1-x:65535", Service("q", 65535, container="My_pg.1-x"), "container/My_pg.1-x"),
    ],
)
def test_a_service_is_read_and_shown(text: str, found: Service, what: str) -> None:
    assert service(text) == found
    assert show(found) == text
    assert target(found) == what


@pytest.mark.parametrize(
    "text",
    [
        *("", "db", "db:5432", "db=5432", "db=task/0123", "db=host/example.org:80", "db=task/0123:", "=task/0123:1"),
        *("db=task/0123:0", "db=task/0123:65536", "db=task/0123:+1", "db=task/0123:1:1", "db=task/0123:http"),
        *("Db=task/0123:1", "d.b=task/0123:1", "-db=task/0123:1", "db-=task/0123:1", "1db=task/0123:1"),
        *("d\N{LATIN SMALL LETTER U WITH DIAERESIS}=task/0123:1", "db\n=task/0123:1", "d b=task/0123:1", "d" * 64),
        *("localhost=task/0123:1", "ip6-loopback=task/0123:1", f"{'d' * 64}=task/0123:1"),
        *("db=container/:1", "db=container/-x:1", "db=container/a/b:1", "db=container/a b:1"),
        "db=task/0123:1\n",
    ],
)
def test_what_is_no_service_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        service(text)


def test_services_need_a_policy_that_takes_them_and_names_of_their_own() -> None:
    for mode, services in (("none", [DB]), ("services", []), ("services", "db")):
        with pytest.raises(BadInput):
            services_event(policy_event(mode, (), (), NOTHING), services, NOTHING)
    with pytest.raises(BadInput):
        policy_event("services", ["example.org"], (), NOTHING)
    with pytest.raises(BadInput):
        policy_event("services", (), ["registry:443"], GRANTED)
    with pytest.raises(BadInput, match="another name"):
        services_event(policy_event("allow", (), ["registry:443"], GRANTED), [f"registry=task/{TASK}:1"], GRANTED)
    with pytest.raises(BadInput, match="db:5432 is two services"):
        policy(DB, "db=task/ba9876543210:5432")
    with pytest.raises(LimitReached):
        policy(*(f"db=task/{TASK}:{number + 1}" for number in range(MOST_SERVICES + 1)))
    assert services_event(policy_event("allow", ["example.org"], (), NOTHING), [], NOTHING) is None
    assert services_event(policy_event("services", (), (), NOTHING), [DB, DB], NOTHING) == ev.ServicesSet(
        (service(DB),)
    )


def test_a_container_needs_a_grant_of_that_port_whenever_it_is_used() -> None:
    given = policy("pg=container/pg:5432")
    assert rule(given, GRANTED, "pg", 5432).service == Service("pg", 5432, container="pg")
    for grants in (NOTHING, NetworkGrants(containers=("pg:5433", "PG:5432", "pg"))):
        assert rule(given, grants, "pg", 5432).reason == "not-granted"
        with pytest.raises(PolicyDenied, match="containers"):
            services_event(ev.NetworkPolicySet("services", ()), ["pg=container/pg:5432"], grants)


def test_a_service_is_reached_at_its_ports_and_nothing_else_is() -> None:
    given = policy(DB, WEB, f"web=task/{TASK}:8001")
    assert rule(given, NOTHING, "db", 5432).service == service(DB)
    assert rule(given, NOTHING, "web", 8001).service == Service("web", 8001, task=TASK)
    assert rule(given, NOTHING, "db", 8000).reason == "port-not-listed"
    for name in ("d", "dbx", "db.example.org", "127.77.0.1", "example.org"):
        assert rule(given, NOTHING, name, 5432).reason == "host-not-listed"


def test_services_go_with_hosts() -> None:
    given = policy(DB, mode="allow", allow=("example.org", "*.example.net"))
    assert rule(given, NOTHING, "db", 5432).service == service(DB)
    assert rule(given, NOTHING, "db", 443).reason == "port-not-listed"
    assert rule(given, NOTHING, "example.org", 443).listed
    anywhere = policy(DB, mode="open")
    assert rule(anywhere, GRANTED, "db", 5432).service == service(DB)
    assert rule(anywhere, GRANTED, "db", 443).reason == "port-not-listed"
    assert rule(anywhere, GRANTED, "example.org", 443).allowed


def test_a_policy_is_set_again_by_its_events() -> None:
    given = policy(DB, mode="allow", allow=("example.org",))
    assert policy_events(given) == [ev.NetworkPolicySet("allow", given.allow), ev.ServicesSet(given.services)]
    assert policy_events(NetworkPolicy("allow", given.allow)) == [ev.NetworkPolicySet("allow", given.allow)]
    assert policy_events(NetworkPolicy()) == []


def test_each_name_has_an_address_of_its_own() -> None:
    given = [service(each) for each in (DB, WEB, f"db=task/{TASK}:5433")]
    assert places(given) == [("127.77.0.1", 5432, "db"), ("127.77.0.2", 8000, "web"), ("127.77.0.1", 5433, "db")]
    assert hosts(given).splitlines()[2:] == ["127.77.0.1\tdb", "127.77.0.2\tweb"]
    assert hosts([]).splitlines() == ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]


@given(st.lists(st.from_regex(r"[a-z][a-z0-9]{0,3}", fullmatch=True), max_size=MOST_SERVICES, unique=True))
def test_no_address_is_given_twice_and_all_are_the_loopbacks(names: list[str]) -> None:
    found = [address for address, _, _ in places([Service(name, 1, task=TASK) for name in names])]
    assert len(set(found)) == len(names)
    assert all(ipaddress.ip_address(each).is_loopback for each in found)
    assert "127.0.0.1" not in found


def test_what_is_offered_are_ports() -> None:
    assert check_ports([5432, 80, 5432]) == (5432, 80)
    assert check_ports([]) == ()
    wrong: list[Any] = [0, 65536, -1, True, 1.0, "80", None]
    for each in wrong:
        with pytest.raises(BadInput):
            check_ports([each])
    with pytest.raises(LimitReached):
        check_ports(range(1, MOST_OFFERS + 2))
