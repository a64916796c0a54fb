"""Names and addresses of hosts as a sandbox may give them, and which addresses are on the public internet.

A name is ASCII, as DNS has it (RFC 1123, with underscores); what people write in other letters is brought to that form
by IDNA, and refused where the versions of IDNA disagree. An address is written in one way only: four decimal numbers,
or IPv6 in brackets. The other ways in which some programs write addresses (one number, hexadecimal, octal, fewer dots)
are neither names nor addresses here: what ends in a number is no name (WHATWG URL, "ends in a number").

Everything here is pure but `is_local`, which asks the kernel.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import unicodedata

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LONGEST = 253


def _networks(*texts: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))


# Link-local, where clouds have their metadata, and where some have it besides.
_METADATA = _networks(
    "169.254.0.0/16", "fe80::/10", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32", "fd00:ec2::/32"
)
_NO_HOST = _networks("0.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::/128", "ff00::/8")
# Mapped, translated, 6to4, Teredo: each stands for an address of version 4, and would hide it.
_EMBEDDING = _networks("::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
_NEVER = (*_METADATA, *_NO_HOST, *_EMBEDDING)

_UNICAST = ipaddress.ip_network("2000::/3")
# What older versions of `ipaddress` take for global (IANA's registries of special-purpose addresses).
_SPECIAL = _networks("192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "2001::/23", "2001:db8::/32", "3fff::/20")


class NotAHost(ValueError):
    """It is neither a name nor an address; the words say why."""


def host(text: str) -> str:
    """The normal form of a name or an address, the latter without brackets. Raises `NotAHost`."""
    if text.startswith("["):
        if not text.endswith("]"):
            raise NotAHost("it has no closing bracket")
        return _address_6(text[1:-1])
    if ":" in text:
        return _address_6(text)
    name = text if text.isascii() else _to_ascii(text)
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError as error:
            raise NotAHost("an address is four decimal numbers with dots between them") from error
    if len(name) > _LONGEST or not all(map(_LABEL.fullmatch, labels)):
        raise NotAHost("a name is made of letters, digits, hyphens and dots")
    return name


def port_number(text: str) -> int | None:
    """The port that decimal digits name; None if they name none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        return None
    return int(text)


def address(text: str) -> Address | None:
    """The address that a host in its normal form is; None if it is a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def is_forbidden(found: Address) -> bool:
    """Whether nothing may be reached at this address, ever: it is a cloud's metadata, no one host's, or hides one."""
    return any(found in network for network in _NEVER)


def is_public(found: Address) -> bool:
    """Whether the public internet reaches this address."""
    if is_forbidden(found) or any(found in network for network in _SPECIAL) or not found.is_global:
        return False
    return found.version == 4 or found in _UNICAST


def is_local(found: Address) -> bool:
    """Whether this machine itself has this address: then the kernel would also send from it. Nothing is sent."""
    family = socket.AF_INET if found.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(found), 9))
        return address(probe.getsockname()[0].partition("%")[0]) == found
    return False


def _address_6(text: str) -> str:
    try:
        found = ipaddress.IPv6Address(text)
    except ValueError as error:
        raise NotAHost("it is no address of version 6") from error
    if found.scope_id is not None:
        raise NotAHost("an address cannot name an interface")
    return str(found)


def _to_ascii(text: str) -> str:
    text = unicodedata.normalize("NFC", text.lower())
    try:
        name = text.encode("idna")
        if name.decode("idna") == text.removesuffix(".") or name.decode("idna") == text:
            return name.decode()
    except UnicodeError:
        pass
    raise NotAHost("its letters have no form in DNS that all agree on; give the one that begins with xn--")
