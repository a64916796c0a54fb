from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.sandboxes.host import Address, NotAHost, address, host, is_forbidden, is_local, is_public


def number(text: str) -> Address:
    found = address(text)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("example.org", "example.org"),
        ("EXAMPLE.Org.", "example.org"),
        ("_service.example.org", "_service.example.org"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example.", "xn--bcher-kva.example"),
        ("localhost", "localhost"),
        ("93.184.215.14", "93.184.215.14"),
        ("[2606:4700:0:0::1111]", "2606:4700::1111"),
        ("2606:4700::1111", "2606:4700::1111"),
        ("[::FFFF:1.2.3.4]", "::ffff:102:304"),
    ],
)
def test_a_host_has_one_normal_form(text: str, normal: str) -> None:
    assert host(text) == normal
    assert host(f"[{normal}]" if ":" in normal else normal) == normal


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        "-a.example",
        "a-.example",
        "a b.example",
        "a/b",
        "a@b",
        "a%2e",
        "a\0b",
        "a\r\nb",
        "x" * 64 + ".example",
        ".".join(["x" * 60] * 5),
        # addresses in the ways that only some programs know
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "127.0.0.0x1",
        "1.2.3.4.5",
        "256.1.1.1",
        "example.0x7f",
        "[::1",
        "[127.0.0.1]",
        "[fe80::1%eth0]",
        "::1::",
        # letters that versions of IDNA disagree on, or that only look like others
        "faß.example",
        "\N{FULLWIDTH DIGIT ONE}27.0.0.1",
        "ⓔxample.org",
        "a。example",
        "ex\N{ZERO WIDTH JOINER}ample.org",
        "\N{SOFT HYPHEN}example.org",
    ],
)
def test_what_could_be_read_in_two_ways_is_no_host(text: str) -> None:
    with pytest.raises(NotAHost):
        host(text)


@given(st.text(max_size=40) | st.from_regex(r"[0-9a-fA-FxX.:\[\]%-]{1,40}", fullmatch=True))
def test_any_text_is_refused_or_brought_to_a_form_that_stays(text: str) -> None:
    try:
        found = host(text)
    except NotAHost:
        return
    assert found.isascii()
    assert found == found.lower()
    assert host(found) == found
    # What the C library takes for an address is one here too, and the same; nothing is an address only for it.
    try:
        numeric = socket.getaddrinfo(found, None, flags=socket.AI_NUMERICHOST, type=socket.SOCK_STREAM)[0][4][0]
    except OSError:
        assert address(found) is None
    else:
        assert number(str(numeric)) == address(found)


@pytest.mark.parametrize("text", ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450::1"])
def test_addresses_of_the_public_internet(text: str) -> None:
    assert is_public(number(text))
    assert not is_forbidden(number(text))


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "127.255.0.1", "10.1.2.3", "172.17.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "0.1.2.3"),
        *("169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254"),
        *("192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1"),
        *("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::2", "fe80::1", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "ff0e::1", "100::1", "5f00::1"),
        *("2001:db8::1", "2001:10::1", "2001:20::1", "3fff::1", "4000::1"),
        # those that stand for one of version 4, public or not
        *("::ffff:1.1.1.1", "::ffff:127.0.0.1", "::1.1.1.1", "64:ff9b::1.1.1.1", "64:ff9b:1::1.1.1.1"),
        *("2002:101:101::1", "2002:7f00:1::", "2001::1", "2001:0:1:1::1"),
    ],
)
def test_no_other_address_is_public(text: str) -> None:
    assert not is_public(number(text))


@pytest.mark.parametrize(
    ("text", "never"),
    [
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("::1", False),
        ("fd12::1", False),
        ("169.254.169.254", True),
        ("::ffff:169.254.169.254", True),
        ("64:ff9b::a9fe:a9fe", True),
        ("2002:a9fe:a9fe::1", True),
        ("168.63.129.16", True),
        ("fe80::1", True),
        ("0.0.0.0", True),
        ("ff02::1", True),
    ],
)
def test_what_a_grant_of_private_addresses_covers(text: str, never: bool) -> None:
    assert is_forbidden(number(text)) == never


def test_the_machines_own_addresses_are_told_from_others() -> None:
    assert is_local(number("127.0.0.1"))
    assert not is_local(number("1.1.1.1"))
    assert not is_local(number("2606:4700:4700::1111"))
