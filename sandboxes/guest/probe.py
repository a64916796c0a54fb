"""Inside a sandbox: try every way out, and print what came of each, as JSON.

    python3 probe.py '{"hosts": [ADDRESS...], "tcp": PORT, "udp": PORT, "abstract": NAME, "word": WORD}'

The host listens at those of its addresses, ports and that name meanwhile, and greets whoever connects with the word.
What is tried is listed in `WAYS`; each tells of what it tried, and whether it got anywhere. Nothing is changed by it,
wherever it runs. One file that needs nothing but Python's standard library (3.9 or later).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

WAIT_SECONDS = 1.0
PROXY = ("127.0.0.1", 3128)
OUTSIDE = (("1.1.1.1", 443), ("8.8.8.8", 53))
OUTSIDE_6 = (("2606:4700:4700::1111", 443), ("2001:4860:4860::8888", 53))
METADATA = (("169.254.169.254", 80), ("168.63.129.16", 80), ("fd00:ec2::254", 80))
ENGINES = ("docker.sock", "containerd/containerd.sock", "podman/podman.sock", "crio/crio.sock")
SETTINGS = ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger")
OURS = re.compile(
    r"/(?:workspace|memory|tmp|proc/.*|proc|sys/.*|sys|dev/.*|dev|run/sandkeep(?:-egress|-python|/spool|/agent)?)?"
    r"|/etc/(?:resolv\.conf|hostname|hosts)|(?:/usr)?/sbin/docker-init"
)
AF_VSOCK = 40
ANSWERED = (errno.ECONNREFUSED, errno.ECONNRESET)
REFUSED = (errno.EPERM, errno.EACCES, errno.ENOSYS)

Found = Iterator[tuple[str, bool, str]]
"""What was tried, whether it is open, and what was seen."""


def tcp(place: tuple[str, int]) -> tuple[str, bool, str]:
    """Connect. That somebody refused is an answer, and so a way."""
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(WAIT_SECONDS)
        number = connection.connect_ex(place)
    return f"{place[0]} port {place[1]}", number == 0 or number in ANSWERED, said(number)


def udp(place: tuple[str, int]) -> tuple[str, bool, str]:
    """Ask as one asks for a name, and wait for an answer."""
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    what = f"{place[0]} port {place[1]}, UDP"
    question = struct.pack(">6H", 1, 0x100, 1, 0, 0, 0) + b"\7example\3org\0" + struct.pack(">2H", 1, 1)
    with socket.socket(family, socket.SOCK_DGRAM) as connection:
        connection.settimeout(WAIT_SECONDS)
        try:
            connection.connect(place)
            connection.send(question)
            return what, True, f"{len(connection.recv(512))} bytes came back"
        except OSError as error:
            # Of our own loopback a refusal only says that nobody is there.
            own = place[0].startswith("127.")
            return what, error.errno in ANSWERED and not own, said(error.errno or errno.ETIMEDOUT)


def said(number: int) -> str:
    """An error number in words."""
    return "connected" if number == 0 else os.strerror(number if number != errno.EAGAIN else errno.ETIMEDOUT)


def external(task: dict[str, Any]) -> Found:
    """Addresses of the public internet."""
    yield from map(tcp, OUTSIDE)


def version_6(task: dict[str, Any]) -> Found:
    """The same, of version 6, and all neighbours."""
    yield from map(tcp, OUTSIDE_6)
    yield udp(("ff02::1", 53))


def routes(task: dict[str, Any]) -> Found:
    """Interfaces and routes there are, beside those to a sidecar's network."""
    near, gateway = beside()
    with open("/proc/net/dev") as file:
        names = [line.split(":")[0].strip() for line in file.readlines()[2:]]
    yield "interfaces", len(names) > (2 if near else 1) or "lo" not in names, ", ".join(names)
    with open("/proc/net/route") as file:
        lines = [line.split() for line in file.readlines()[1:]]
    ways = [tuple(socket.inet_ntoa(struct.pack("=I", int(each, 16))) for each in line[1:3]) for line in lines]
    # The engine names a gateway in a network that the machine has no address in. That nobody answers, others try.
    known = ((near, "0.0.0.0"), ("0.0.0.0", gateway)) if near else ()
    strange = [way for way in ways if way not in known]
    yield "routes", bool(strange), ", ".join(f"{to} by {by}" for to, by in ways) or "none"


def beside() -> tuple[str, str]:
    """The network of the sidecar that is the way out, of 16 addresses, and the gateway that it would have; empty if
    there is none."""
    address = proxy_place()[0]
    if address == PROXY[0]:
        return "", ""
    network = struct.unpack("!I", socket.inet_aton(address))[0] & ~15
    return socket.inet_ntoa(struct.pack("!I", network)), socket.inet_ntoa(struct.pack("!I", network + 1))


def proxy_place() -> tuple[str, int]:
    """Where the way out begins."""
    found = re.fullmatch(r"http://([0-9.]+):([0-9]+)", os.environ.get("http_proxy", ""))
    return (found[1], int(found[2])) if found else PROXY


def host(task: dict[str, Any]) -> Found:
    """The addresses of the host and of its gateways, at a port where it listens."""
    yield from (tcp((each, task["tcp"])) for each in task["hosts"])
    yield from (udp((each, task["udp"])) for each in task["hosts"])


def loopback(task: dict[str, Any]) -> Found:
    """What listens on the loopback of the host."""
    for place in (("127.0.0.1", task["tcp"]), ("::1", task["tcp"])):
        family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            yield f"{place[0]} port {place[1]}", *greeted(connection, place, task["word"])


def greeted(connection: socket.socket, place: Any, word: str) -> tuple[bool, str]:
    """Whether the host answers there: others may, who are in here with us."""
    connection.settimeout(WAIT_SECONDS)
    try:
        connection.connect(place)
        return connection.recv(100) == word.encode(), "connected"
    except OSError as error:
        return False, said(error.errno or errno.ETIMEDOUT)


def names(task: dict[str, Any]) -> Found:
    """Resolvers: the engine's own, those that are configured, and public ones."""
    configured = []
    with contextlib.suppress(OSError), open("/etc/resolv.conf") as file:
        configured = [line.split()[1] for line in file if line.startswith("nameserver ")]
    yield from (udp((each, 53)) for each in dict.fromkeys(("127.0.0.11", *configured, "8.8.8.8")))
    try:
        found = socket.getaddrinfo("example.org", 443)
        yield "example.org", True, f"resolved to {found[0][4][0]}"
    except OSError as error:
        yield "example.org", False, error.strerror or "not resolved"


def metadata(task: dict[str, Any]) -> Found:
    """Where clouds tell machines their secrets."""
    yield from map(tcp, METADATA)


def abstract(task: dict[str, Any]) -> Found:
    """Unix sockets that have no path, and so no permissions."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        yield f"@{task['abstract']}", *greeted(connection, "\0" + task["abstract"], task["word"])


def engines(task: dict[str, Any]) -> Found:
    """The sockets of container engines."""
    for place in (f"{folder}/{name}" for folder in ("/run", "/var/run") for name in ENGINES):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(WAIT_SECONDS)
            number = connection.connect_ex(place)
        yield place, number == 0, said(number)


def raw(task: dict[str, Any]) -> Found:
    """Sockets that make their own packets."""
    for what, family, kind, protocol in (
        ("raw socket", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        ("raw socket, IPv6", socket.AF_INET6, socket.SOCK_RAW, 58),
        ("packet socket", 17, socket.SOCK_RAW, 3),
    ):
        try:
            socket.socket(family, kind, protocol).close()
            yield what, True, "made"
        except OSError as error:
            yield what, False, said(error.errno or 0)


def hypervisor(task: dict[str, Any]) -> Found:
    """The host of a virtual machine, which no network namespace is in the way of."""
    try:
        connection = socket.socket(AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        yield "AF_VSOCK", False, said(error.errno or 0)
        return
    with connection:
        connection.settimeout(WAIT_SECONDS)
        number = connection.connect_ex((2, 1))
    yield "AF_VSOCK, host port 1", number == 0 or number in ANSWERED, said(number)


def settings(task: dict[str, Any]) -> Found:
    """What changes the kernel for everybody."""
    for path in SETTINGS:
        try:
            os.close(os.open(path, os.O_WRONLY))
            yield path, True, "opened to write"
        except OSError as error:
            yield path, False, said(error.errno or 0)


def mounts(task: dict[str, Any]) -> Found:
    """File systems that are not meant to be here, and making more; devices; namespaces."""
    with open("/proc/self/mountinfo") as file:
        lines = [line.split() for line in file]
    caches, empty = set(task["caches"]), set(task["empty"])
    more = sorted(
        point
        for point, kind in ((line[4], line[-3]) for line in lines)
        if not OURS.fullmatch(point)
        and not podmans(point, kind)
        and point not in caches
        and not (point in empty and kind == "tmpfs")
    )
    yield "mounted besides", bool(more), ", ".join(more) or "nothing"
    libc = ctypes.CDLL(None, use_errno=True)
    for what, call in (
        # Of a kind that there is not, so that nothing is mounted even where it may be.
        ("mount", lambda: libc.mount(b"none", b"/", b"sandkeep-probe", 0, None)),
        ("a new user namespace", lambda: libc.unshare(0x10000000)),
        ("a new mount namespace", lambda: libc.unshare(0x00020000)),
        ("the network of process 1", lambda: enter(libc)),
    ):
        number = in_child(call)
        yield what, number not in REFUSED, said(number) if number else "done"
    disks = []
    for name in os.listdir("/dev"):
        status = os.stat(f"/dev/{name}")
        if stat.S_ISBLK(status.st_mode) or name in ("mem", "kmem", "port", "kvm", "vsock", "vhost-vsock"):
            disks.append(name)
    yield "devices", bool(disks), ", ".join(disks) or "none"


def podmans(point: str, kind: str) -> bool:
    """Whether that is podman's /run, or what lies over its /var/tmp: in memory, with nothing in it but folders. The
    host's own is full of files and sockets."""
    if kind != "tmpfs" or point not in ("/run", "/var/tmp"):
        return False
    return all(stat.S_ISDIR(os.lstat(f"{point}/{name}").st_mode) for name in set(os.listdir(point)) - {".containerenv"})


def in_child(call: Callable[[], int]) -> int:
    """The error number of a system call that is made by a child, which keeps to itself what comes of it."""
    child = os.fork()
    if child == 0:
        ctypes.set_errno(0)
        os._exit(0 if call() == 0 else ctypes.get_errno() or errno.EACCES)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def enter(libc: Any) -> int:
    """Join the network of process 1 by setns(2), which needs a privilege even for one's own."""
    try:
        descriptor = os.open("/proc/1/ns/net", os.O_RDONLY)
    except OSError:
        return -1
    try:
        return int(libc.setns(descriptor, 0x40000000))
    finally:
        os.close(descriptor)


def proxy(task: dict[str, Any]) -> Found:
    """The egress proxy, asked for what no policy may allow unless it says so literally."""
    for place in (*((each, task["tcp"]) for each in ("127.0.0.1", *task["hosts"])), METADATA[0], METADATA[2]):
        name = f"[{place[0]}]" if ":" in place[0] else place[0]
        where = f"{name}:{place[1]}"
        try:
            with socket.create_connection(proxy_place(), WAIT_SECONDS) as connection:
                connection.settimeout(10)
                connection.sendall(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
                status = connection.recv(64).split(b"\r\n")[0].decode("ascii", "replace")
            yield where, " 200" in status, status or "closed"
        except OSError as error:
            yield where, False, said(error.errno or errno.ETIMEDOUT)


WAYS: tuple[tuple[str, Callable[[dict[str, Any]], Found]], ...] = (
    ("external address", external),
    ("IPv6", version_6),
    ("interfaces and routes", routes),
    ("host address", host),
    ("host loopback", loopback),
    ("DNS", names),
    ("metadata service", metadata),
    ("abstract socket", abstract),
    ("engine socket", engines),
    ("raw and packet sockets", raw),
    ("hypervisor", hypervisor),
    ("kernel settings", settings),
    ("mounts and devices", mounts),
    ("egress proxy", proxy),
)


def main() -> None:
    """Try them all."""
    task = json.loads(sys.argv[1])
    found = []
    for way, attempt in WAYS:
        try:
            found += [
                {"way": way, "what": what, "open": is_open, "seen": seen} for what, is_open, seen in attempt(task)
            ]
        except Exception as error:  # noqa: BLE001 - what could not be tried is told, and counts as open
            found.append({"way": way, "what": "not tried", "open": True, "seen": repr(error)})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
