from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Destination
from sandkeep.projections import NetworkPolicy
from sandkeep.sandboxes import host
from sandkeep.sandboxes.network_policy import destination
from sandkeep.sandboxes.settings import NetworkGrants
from sandkeep.sandboxes.squid import NEVER, Seen, configuration, events, parse

RANGES = [ipaddress.ip_network(each) for each in NEVER]
ALLOW = NetworkPolicy("allow", tuple(map(destination, ("example.org", "*.example.net:8443"))))
NOTHING = NetworkGrants()


def rules(policy: NetworkPolicy) -> list[str]:
    """What it says of access, in order."""
    return [line for line in configuration(policy).splitlines() if line.startswith("http_access ")]


def test_what_is_listed_is_allowed_by_name_and_port_before_anything_is_resolved() -> None:
    lines = configuration(ALLOW).splitlines()
    assert "acl host0 dstdomain -n example.org" in lines
    assert "acl port0 port 443 80" in lines
    assert "acl port1 port 8443" in lines
    assert rules(ALLOW) == [
        "http_access deny manager",
        "http_access deny strange",
        "http_access allow host0 port0 !never",
        "http_access allow host1 port1 !never",
        "http_access deny all",
    ]


def test_what_is_private_or_a_service_is_not_listed() -> None:
    private = Destination("db.internal", (5432,), True)
    for policy in (NetworkPolicy("allow", (private,)), NetworkPolicy("services"), NetworkPolicy()):
        assert rules(policy)[2:] == ["http_access deny all"]
    assert rules(NetworkPolicy("open", (private,)))[2:] == ["http_access allow !never", "http_access deny all"]


@given(st.from_regex(r"[a-z0-9.-]{0,20}", fullmatch=True))
def test_a_pattern_matches_names_below_and_nothing_else(beginning: str) -> None:
    line = next(line for line in configuration(ALLOW).splitlines() if line.startswith("acl host1 "))
    prefix = "acl host1 dstdom_regex -n "
    assert line.startswith(prefix)
    name = beginning + "example.net"
    whole = re.search(line.removeprefix(prefix), name) is not None
    assert whole == bool(re.fullmatch(r"([a-z0-9_-]+\.)+", beginning))
    assert not re.search(line.removeprefix(prefix), f"{name}.evil.test")
    assert not re.search(line.removeprefix(prefix), "a.exampleXnet")


@given(st.ip_addresses())
def test_whatever_is_not_public_is_never_reached(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    # Of what begins with eight zero bits only some was ever given to anybody; see IANA's registry.
    assume(address.version == 4 or address.packed[0] != 0)
    if not host.is_public(address):
        assert any(address in each for each in RANGES)


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "10.1.2.3", "172.17.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "198.18.3.4"),
        *("0.0.0.0", "255.255.255.255", "224.0.0.1", "::1", "::", "fe80::1", "fd00:ec2::254", "64:ff9b::a00:1"),
        *("2002:a00:1::", "2001::1", "168.63.129.16", "100.100.100.200", "192.0.0.192"),
    ],
)
def test_private_addresses_are_never_reached(text: str) -> None:
    assert any(ipaddress.ip_address(text) in each for each in RANGES)


def test_public_addresses_are_reached() -> None:
    for text in ("93.184.215.14", "1.1.1.1", "172.15.0.1", "172.32.0.1", "2606:4700::1111", "::ffff:93.184.215.14"):
        assert not any(ipaddress.ip_address(text) in each for each in RANGES)


def test_what_squid_tells_becomes_the_events_of_a_connection() -> None:
    seen = parse(b"12 100 2000 TCP_TUNNEL 200 example.org 443 93.184.215.14\n")
    assert seen == Seen("example.org", 443, "93.184.215.14", 100, 2000, 12_000_000, 200, False)
    assert events(seen, ALLOW, NOTHING, "c") == [
        ev.ConnectionAllowed("c", "example.org", 443, "93.184.215.14"),
        ev.ConnectionClosed("c", "example.org", 443, 100, 2000, 12_000_000, "ended"),
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"0 1 2 TCP_DENIED 403 evil.test 80 -", ("evil.test", 80, "host-not-listed")),
        (b"0 1 2 TCP_DENIED 403 example.org 81 -", ("example.org", 81, "port-not-listed")),
        (b"0 1 2 TCP_DENIED 403 EXAMPLE.org. 443 -", ("example.org", 443, "not-public")),
        (b"0 1 2 TCP_DENIED 403 %5B::1%5D 80 -", ("::1", 80, "host-not-listed")),
        (b"0 1 2 NONE_NONE 500 example.org 443 -", ("example.org", 443, "unreachable")),
        (b"0 1 2 NONE_NONE 400 - - -", ("", 0, "bad-request")),
        (b"0 1 2 TCP_DENIED 403 a%20b 80 -", ("", 0, "bad-request")),
    ],
)
def test_what_was_refused_says_why(line: bytes, found: tuple[str, int, str]) -> None:
    seen = parse(line)
    assert seen is not None
    assert events(seen, ALLOW, NOTHING, "c") == [ev.ConnectionDenied(*found)]


@given(st.binary(max_size=200) | st.from_regex(rb"\d+ \d+ \d+ [A-Z_]+ \d+ \S+ \S+ \S+", fullmatch=True))
def test_whatever_a_line_holds_it_is_told_or_not(line: bytes) -> None:
    seen = parse(line)
    if seen is not None:
        assert seen.sent >= 0
        assert len(events(seen, ALLOW, NOTHING, "c")) in (1, 2)
        assert seen.host in ("", seen.host and host.host(seen.host))
