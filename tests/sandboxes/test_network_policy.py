from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import BadInput, LimitReached
from sandkeep.events.catalogue import Destination
from sandkeep.projections import NetworkPolicy
from sandkeep.sandboxes.errors import PolicyDenied
from sandkeep.sandboxes.network_policy import MAX_DESTINATIONS, destination, policy_event, rule, show
from sandkeep.sandboxes.settings import NetworkGrants

NOTHING = NetworkGrants()
LABEL = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)


def policy(
    *allow: str, mode: str = "allow", private: tuple[str, ...] = (), grants: NetworkGrants = NOTHING
) -> NetworkPolicy:
    event = policy_event(mode, allow, private, grants)
    return NetworkPolicy(event.mode, event.allow)


def reason(given: NetworkPolicy, name: str, port: int = 443, grants: NetworkGrants = NOTHING) -> str:
    return rule(given, grants, name, port).reason


@pytest.mark.parametrize(
    ("text", "host", "ports"),
    [
        ("example.org", "example.org", (443, 80)),
        ("Example.ORG.:8443", "example.org", (8443,)),
        ("*.Example.org", "*.example.org", (443, 80)),
        ("*.example.org:22", "*.example.org", (22,)),
        ("bücher.example", "xn--bcher-kva.example", (443, 80)),
        ("93.184.215.14", "93.184.215.14", (443, 80)),
        ("[2606:4700::1111]:8443", "2606:4700::1111", (8443,)),
        ("[2606:4700::1111]", "2606:4700::1111", (443, 80)),
        ("2606:4700::1111", "2606:4700::1111", (443, 80)),
    ],
)
def test_a_destination_is_read_and_shown(text: str, host: str, ports: tuple[int, ...]) -> None:
    found = destination(text)
    assert found == Destination(host, ports)
    assert destination(show(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        *("", "*", "*.", "*.org", "*.*.example.org", "a.*.org", "ex*mple.org", "*example.org", "*.1.2.3.4", "*.[::1]"),
        *(
            "example.org:",
            "example.org:0",
            "example.org:65536",
            "example.org:+80",
            "example.org:8\N{ARABIC-INDIC DIGIT ZERO}",
            "example.org:80:80",
        ),
        *("http://example.org", "example.org/x", "user@example.org", "2130706433", "127.1", "example.org:https"),
    ],
)
def test_what_is_no_destination_or_too_wide_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        destination(text)


def test_a_name_is_matched_whole_and_a_pattern_below_its_name_only() -> None:
    given = policy("example.org", "*.example.net")
    assert reason(given, "example.org") == ""
    for name in ("evilexample.org", "example.org.evil.test", "www.example.org", "example.or", "xample.org", "org"):
        assert reason(given, name) == "host-not-listed"
    assert reason(given, "a.example.net") == reason(given, "a.b.example.net") == ""
    for name in ("example.net", "evilexample.net", "a.example.net.evil.test", ".example.net"):
        assert reason(given, name) == "host-not-listed"


@given(st.lists(LABEL, min_size=2, max_size=4), st.lists(LABEL, max_size=3), LABEL)
def test_a_pattern_covers_exactly_the_names_below(base: list[str], below: list[str], glue: str) -> None:
    name = ".".join(base)
    given = policy(f"*.{name}")
    assert (reason(given, ".".join([*below, name])) == "") == bool(below)
    assert reason(given, glue + name) == "host-not-listed"
    if not f"{name}.{glue}".endswith(f".{name}"):
        assert reason(given, f"{name}.{glue}") == "host-not-listed"


def test_only_the_listed_ports_are_allowed() -> None:
    given = policy("example.org", "ssh.example.org:22")
    assert reason(given, "example.org", 80) == reason(given, "ssh.example.org", 22) == ""
    assert reason(given, "example.org", 22) == reason(given, "ssh.example.org", 443) == "port-not-listed"
    assert reason(given, "example.org", 8443) == "port-not-listed"


def test_an_address_is_allowed_only_if_it_is_named() -> None:
    given = policy("93.184.215.14", "*.example.org")
    assert reason(given, "93.184.215.14") == ""
    assert reason(given, "93.184.215.15") == reason(given, "::ffff:5db8:d70e") == "host-not-listed"


def test_without_a_policy_nothing_is_allowed() -> None:
    assert reason(NetworkPolicy(), "example.org") == "no-network"
    assert (
        reason(NetworkPolicy("of a later version", (Destination("example.org", (443,)),)), "example.org")
        == "no-network"
    )


def test_an_open_network_needs_a_grant_whenever_it_is_used() -> None:
    granted = NetworkGrants(open=True)
    given = policy(mode="open", grants=granted)
    assert reason(given, "anything.example", 22, granted) == ""
    assert not rule(given, granted, "anything.example", 22).listed
    assert reason(given, "anything.example", 22) == "not-granted"
    with pytest.raises(PolicyDenied, match=r"keep\.toml"):
        policy(mode="open")


def test_what_is_private_needs_a_grant_of_that_host_and_port_whenever_it_is_used() -> None:
    granted = NetworkGrants(private=("what is this?", "DB.internal:5432"))
    given = policy("example.org", private=("db.internal:5432",), grants=granted)
    ruling = rule(given, granted, "db.internal", 5432)
    assert ruling.allowed
    assert ruling.private
    assert not rule(given, granted, "example.org", 443).private
    assert reason(given, "db.internal", 5433, granted) == "port-not-listed"
    assert reason(given, "db.internal", 5432) == "port-not-listed"
    for other in ("db.internal:5433", "other.internal:5432"):
        with pytest.raises(PolicyDenied, match="private"):
            policy(private=(other,), grants=granted)
    for wrong in ("*.db.internal:5432", "db.internal"):
        with pytest.raises(BadInput):
            policy(private=(wrong,), grants=granted)


@pytest.mark.parametrize(
    ("mode", "allow"), [("some", ()), ("allow", ()), ("none", ("example.org",)), ("open", ("example.org",))]
)
def test_a_policy_that_makes_no_sense_is_refused(mode: str, allow: tuple[str, ...]) -> None:
    with pytest.raises(BadInput):
        policy(*allow, mode=mode, grants=NetworkGrants(open=True))


def test_a_policy_has_a_bounded_length_and_holds_each_destination_once() -> None:
    assert len(policy("example.org", "EXAMPLE.org").allow) == 1
    with pytest.raises(LimitReached):
        policy(*(f"h{number}.example" for number in range(MAX_DESTINATIONS + 1)))
    with pytest.raises(BadInput, match="list of words"):
        policy_event("allow", "example.org", (), NOTHING)
