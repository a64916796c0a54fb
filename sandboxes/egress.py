"""The way out of a sandbox, as those who run commands see to it.

    command  ──▶  forwarder (in the sandbox, 127.0.0.1:3128)  ──▶  proxy.sock  ──▶  proxy (on the host)  ──▶  server

A sandbox has no network. A folder of the keep for each task, `run/egress/<task>/`, is mounted into it, read-only; in it
lies the socket that the egress proxy listens on while the task's policy allows anything. The proxy is one process a
keep (see `egress_process`): whoever needs it and finds it gone starts it, before a command and once a second while one
runs. That either of both runs is told by a `flock`, which the kernel frees with its holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sandkeep.projections import NetworkMode, network, registry
from sandkeep.sandboxes.errors import NetworkUnavailable
from sandkeep.sandboxes.guest import forwarder
from sandkeep.sandboxes.intent import abandoned
from sandkeep.sandboxes.podman import UNTOLD

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

SOCKET = Path(forwarder.PROXY).name

_FORWARDER_LOCK = Path(forwarder.FORWARDER).name
_PROXY_LOCK, _PROXY_LOG = "proxy.lock", "proxy.log"
_logger = logging.getLogger(__name__)
_WAIT_SECONDS = 20.0
_LOOK_SECONDS = 1.0
_ADDRESS = f"http://127.0.0.1:{forwarder.PORT}"
_VARIABLES = {
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"), _ADDRESS),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1"),
}
_FORWARD = ["python3", "-I", "-S", "-c", Path(forwarder.__file__).read_text()]
_NO_PYTHON = "the image has no python3, which the way out needs; use an image that has it, or the policy 'none'"
_NOT_FORWARDED = {
    None: "the forwarder in the sandbox does not come to serve; run the command again",
    126: _NO_PYTHON,
    127: _NO_PYTHON,
    UNTOLD: f"the forwarder in the sandbox has ended; if a program there has taken port {forwarder.PORT}, end it",
    forwarder.PORT_TAKEN: f"a program in the sandbox has taken port {forwarder.PORT}, which the way out needs; end it",
}


def folder(keep: Keep, task: str) -> Path:
    """The folder that the sandbox of a task sees as `forwarder.FOLDER`."""
    return keep.path / "run" / "egress" / task


def prepare(keep: Keep, task: str) -> Path:
    """Make that folder, if it is not there."""
    made = folder(keep, task)
    made.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = made / _FORWARDER_LOCK
    lock.touch(mode=0o644)
    # Whatever our umask is, what runs in the sandbox has to get there; and only what runs in this one can.
    made.chmod(0o755)
    lock.chmod(0o644)
    return made


@contextlib.contextmanager
def way_out(keep: Keep, task: str, container: str) -> Iterator[dict[str, str]]:
    """While the block runs, the way out of a sandbox is kept open, if the task's policy allows anything; the variables
    that tell programs of it. Whoever enters it is `working` on the task.

    Raises `NetworkUnavailable` if it cannot be opened.
    """
    if not is_open(keep, task):
        yield {}
        return
    open_way(keep, task, container)

    def beat() -> None:
        revive(keep)

    number = keep.locking.heartbeat.add(_LOOK_SECONDS, beat)
    try:
        yield dict(_VARIABLES)
    finally:
        keep.locking.heartbeat.remove(number)


def is_open(keep: Keep, task: str) -> bool:
    """Whether the task's policy allows anything."""
    with keep.projections.reading() as state:
        return network.policy(state, task).mode != NetworkMode.NONE


def wanted(keep: Keep) -> set[str]:
    """The tasks whose policy allows anything and that have a sandbox."""
    with keep.projections.reading() as state:
        found = ((task, registry.find(state, task)) for task, _ in network.policies(state))
        return {task for task, known in found if known is not None and known.container is not None}


def revive(keep: Keep) -> list[str]:
    """Start the proxy if something needs it and it does not run; tells so in a line. That it fails is logged."""
    if not wanted(keep):
        return []
    shared = keep.path / "run" / "egress"
    shared.mkdir(parents=True, exist_ok=True)
    lock = os.open(shared / _PROXY_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Whoever has the lock starts the one proxy there is, and hands it the lock.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _start(keep, lock)
    except BlockingIOError:
        return []
    except (OSError, subprocess.CalledProcessError) as error:
        _logger.warning("the egress proxy cannot be started: %s", error)  # and tried again by whoever comes next
        return []
    finally:
        os.close(lock)
    return ["started the egress proxy"]


def open_way(keep: Keep, task: str, container: str) -> None:
    """See that the proxy serves a task and that its sandbox has a forwarder. The caller is `working` on the task."""
    _await_proxy(keep, task)
    if _is_forwarded(keep, task):
        return
    started = keep.engine.detach(container, _FORWARD)
    deadline = time.monotonic() + _WAIT_SECONDS
    while not _is_forwarded(keep, task):
        status = keep.engine.exit_status(started)
        if status is not None or time.monotonic() > deadline:
            raise NetworkUnavailable(_NOT_FORWARDED.get(status, f"the forwarder in the sandbox ended with {status}"))
        time.sleep(0.005)


@contextlib.contextmanager
def address(keep: Keep, task: str) -> Iterator[str]:
    """An address of the task's socket that is short enough, however deep the keep lies."""
    descriptor = os.open(folder(keep, task), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


def _await_proxy(keep: Keep, task: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    prepare(keep, task)
    while not _answers(keep, task):
        if time.monotonic() > deadline:
            raise NetworkUnavailable(
                f"the egress proxy does not come to serve task {task}; see {_PROXY_LOG} in the keep's run/egress"
            )
        revive(keep)
        time.sleep(0.02)


def _is_forwarded(keep: Keep, task: str) -> bool:
    return not abandoned(folder(keep, task), _FORWARDER_LOCK)


def _answers(keep: Keep, task: str) -> bool:
    with address(keep, task) as place, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_LOOK_SECONDS)
        try:
            probe.connect(place)
        except OSError:
            return False
    return True


def _start(keep: Keep, lock: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    log = os.open(keep.path / "run" / "egress" / _PROXY_LOG, flags, 0o600)
    try:
        # In the background of a shell that ends at once, so that it is no child of ours that we would have to reap.
        command = [sys.executable, "-P", "-m", "sandkeep.sandboxes.egress_process", str(keep.path), str(lock)]
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sandkeep", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(lock,),
            cwd="/",
            start_new_session=True,
            check=True,
        )
    finally:
        os.close(log)
