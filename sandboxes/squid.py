"""Squid as the way out, where the engine's containers cannot share a socket with us: what it is told and tells.

Its configuration is an allow-list in which names are compared before any is resolved, so that a name that is not
allowed is not even asked for. It resolves a name that is, and refuses it if any of its addresses is not public; an
answer is kept for a minute. Unlike our proxy it does not look at the name in TLS. Pure.
"""

from __future__ import annotations

import re

import msgspec

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Destination
from sandkeep.projections import NetworkMode, NetworkPolicy
from sandkeep.sandboxes import network_policy
from sandkeep.sandboxes.guest import forwarder
from sandkeep.sandboxes.host import NotAHost, host
from sandkeep.sandboxes.settings import NetworkGrants

PORT = forwarder.PORT

COMMAND = [
    *("/bin/busybox", "sh", "-c"),
    'printf "%s" "$SQUID" >/tmp/squid.conf && exec /usr/sbin/squid -N -f /tmp/squid.conf',
]
"""What runs it, with its configuration in the variable SQUID."""

SERVING = b"Accepting HTTP Socket connections"
"""What it says on its standard error when it serves."""

NEVER = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16", "169.254.0.0/16", "172.16.0.0/12"),
    *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
    *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    # Squid has addresses of version 4 as ::ffff:0:0/96, so no range may hold that.
    *("::/96", "64:ff9b::/32", "100::/8", "200::/7", "400::/6", "800::/5", "1000::/4", "2001::/23", "2001:db8::/32"),
    *("2002::/16", "3fff::/20", "4000::/2", "8000::/1"),
)
"""What is not on the public internet, or stands for what may not be; see `host`."""

_HEAD = f"""http_port {PORT}
visible_hostname sandkeep
pid_filename none
cache deny all
cache_mem 8 MB
hosts_file none
netdb_filename none
pinger_enable off
max_filedescriptors 4096
negative_dns_ttl 60 seconds
connect_timeout 10 seconds
read_timeout 5 minutes
shutdown_lifetime 0 seconds
forwarded_for delete
via off
global_internal_static off
request_header_max_size 16 KB
client_persistent_connections off
server_persistent_connections off
logformat sandkeep %tr %>st %<st %Ss %>Hs %>rd %>rP %<a
access_log stdio:/dev/stdout logformat=sandkeep
cache_log /dev/stderr
cache_store_log none
coredump_dir /tmp
acl strange proto FTP URN
http_access deny manager
http_access deny strange
"""
_LINE = re.compile(rb"(\d{1,12}) (\d{1,18}) (\d{1,18}) ([A-Z_]{1,60}) (\d{1,4}) (\S{1,300}) (\d{1,5}|-) (\S{1,60})")


class Seen(msgspec.Struct, frozen=True):
    """What squid tells of a connection that has ended; `host` is empty if it named none."""

    host: str
    port: int
    address: str
    sent: int
    received: int
    duration_ns: int
    status: int
    denied: bool


def configuration(policy: NetworkPolicy) -> str:
    """The configuration that lets through what a policy allows, but what it lists as private, and services."""
    lines = [f"acl never dst {' '.join(NEVER)}"]
    if policy.mode == NetworkMode.OPEN:
        lines.append("http_access allow !never")
    elif policy.mode == NetworkMode.ALLOW:
        for number, each in enumerate(each for each in policy.allow if not each.private):
            lines.append(f"acl host{number} {_named(each)}")
            lines.append(f"acl port{number} port {' '.join(map(str, each.ports))}")
            lines.append(f"http_access allow host{number} port{number} !never")
    return "\n".join((_HEAD.rstrip(), *lines, "http_access deny all", ""))


def parse(line: bytes) -> Seen | None:
    """What a line of its log tells; None if it is none. What was asked for in it is the sandbox's word."""
    found = _LINE.fullmatch(line.rstrip(b"\n"))
    if found is None:
        return None
    name, port = "", 0
    try:
        name, port = host(_bare(found[6].decode("ascii"))), int(found[7])
    except (NotAHost, ValueError):
        name, port = "", 0
    status = found[4].decode()
    address = found[8].decode("ascii", "replace")
    return Seen(
        *(name, port, "" if address == "-" else address, int(found[2]), int(found[3])),
        *(int(found[1]) * 10**6, int(found[5]), "DENIED" in status),
    )


def events(seen: Seen, policy: NetworkPolicy, grants: NetworkGrants, connection: str) -> list[Event]:
    """The events of a connection."""
    if seen.denied or not seen.address:
        reason = network_policy.rule(policy, grants, seen.host, seen.port).reason if seen.host else "bad-request"
        if not reason:
            reason = "not-public" if seen.denied else "unreachable"
        return [ev.ConnectionDenied(seen.host, seen.port, reason)]
    counts = (seen.sent, seen.received, seen.duration_ns)
    return [
        ev.ConnectionAllowed(connection, seen.host, seen.port, seen.address),
        ev.ConnectionClosed(connection, seen.host, seen.port, *counts, "ended"),
    ]


def _bare(text: str) -> str:
    """A host as squid tells it: with the brackets of an address of version 6 escaped."""
    return text.replace("%5B", "[").replace("%5D", "]")


def _named(found: Destination) -> str:
    """An ACL that compares whole names, and asks for none."""
    if found.host.startswith("*."):
        return rf"dstdom_regex -n ^([a-z0-9_-]+\.)+{re.escape(found.host[2:])}$"
    return f"dstdomain -n {found.host}"
