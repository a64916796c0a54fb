"""The process that the egress proxy of a keep runs in: `egress_process KEEP LOCK`.

There is one a keep at most: it holds `run/egress/proxy.lock`, which whoever starts it hands to it. It serves every task
that has a sandbox and may reach anything, follows the log to learn of changes, and ends by itself when there has been
no such task for a while, or the keep is gone. Who wants a task served stores that first and looks at the lock then; so
it gives up the lock before it looks for the last time. It can be killed at any moment: what it had let through is on
record, only the closing is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import final

from sandkeep.events import Event, SandkeepError
from sandkeep.events.catalogue import Service
from sandkeep.projections import TaskState, network, registry
from sandkeep.sandboxes import egress, network_policy, service_target, settings, sidecar
from sandkeep.sandboxes.egress_proxy import EgressProxy
from sandkeep.sandboxes.egress_record import EgressRecord
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.network_policy import Ruling
from sandkeep.sandboxes.settings import NetworkGrants

ACTOR = "egress-proxy"
"""Who acts in what the proxy records."""

LINGER_SECONDS = 10.0

_LOOK_SECONDS, _REST_SECONDS = 2.0, 0.01
_BACKLOG = 256
_RESOLVERS = 32
_MAX_LOG_BYTES = 1 << 20
_DESCRIPTORS = 65_536
_logger = logging.getLogger(__name__)


@final
class Warden:
    """What the proxy asks of the keep, and tells it."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._stamp: tuple[int, int, int] | None = None
        self._grants = NetworkGrants()

    def rule(self, task: str, host: str, port: int) -> Ruling:
        """Whether a task may connect to a host at a port, now."""
        with self._keep.projections.reading() as state:
            ruling = network_policy.rule(network.policy(state, task), self._settings(), host, port)
            service = ruling.service
            if service is not None and service.task and service.port not in network.offers(state, service.task):
                return Ruling("not-offered")
        return ruling

    async def reach(self, service: Service) -> tuple[socket.socket, str]:
        """A connection to a service, and what it is. Raises `NotReached`."""
        return await asyncio.get_running_loop().run_in_executor(None, service_target.connect, self._keep, service)

    def store(self, task: str, event: Event) -> None:
        """Put an event on the record of a task, unless that was cleaned up."""

        def decide(found: registry.Task | None) -> list[Event]:
            return [] if found is None or found.state is TaskState.CLEANED else [event]

        self._keep.decide(task, decide)

    def _settings(self) -> NetworkGrants:
        """What the keep grants; nothing, while that cannot be read."""
        stamp = None
        with contextlib.suppress(OSError):
            status = (self._keep.path / "keep.toml").stat()
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp is None or stamp != self._stamp:
            try:
                self._grants = settings.load(self._keep.path).network
            except SandkeepError as error:
                _logger.warning("nothing is granted: %s", error)
                self._grants = NetworkGrants()
            self._stamp = stamp
        return self._grants


async def run(keep: Keep, lock: int) -> None:
    """Serve until nothing is left to be served. `lock` is the open lock file."""
    loop, wake, ended = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    loop.set_default_executor(ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="egress-resolve"))

    def end() -> None:
        ended.set()
        wake.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)

    def rung() -> None:
        loop.call_soon_threadsafe(wake.set)

    deafen = keep.log.listen(rung)
    warden = Warden(keep)
    proxy = EgressProxy(warden.rule, EgressRecord(warden.store), warden.reach)
    last = time.monotonic()
    try:
        while not ended.is_set() and (keep.path / "keep.toml").exists():
            wake.clear()
            _bound_log()
            if await _serve_all(keep, proxy):
                last = time.monotonic()
            elif time.monotonic() - last > LINGER_SECONDS and _give_up(keep, lock):
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), _LOOK_SECONDS)
            await asyncio.sleep(_REST_SECONDS)  # what we record wakes us too
    finally:
        deafen()
        for task in proxy.tasks:
            _remove(keep, task)
        await proxy.close()


async def _serve_all(keep: Keep, proxy: EgressProxy) -> bool:
    """Serve the tasks that are to be served and no others, and record what the sidecars of others tell; whether there
    are any."""
    wanted = egress.wanted(keep)
    beside = {task for task in wanted if sidecar.find(egress.folder(keep, task)) is not None}
    for task in proxy.tasks - (wanted - beside):
        proxy.stop(task)
        _remove(keep, task)
    for task in beside:
        await asyncio.get_running_loop().run_in_executor(None, _tell, keep, task)
    for task in wanted - beside - proxy.tasks:
        with contextlib.suppress(FileNotFoundError):  # it is being cleaned up
            await proxy.serve(task, _listen(keep, task))
    proxy.review()
    return bool(wanted)


def _tell(keep: Keep, task: str) -> None:
    try:
        sidecar.tell(keep, task, egress.folder(keep, task))
    except SandkeepError as error:
        _logger.error("what the sidecar of task %s tells is not on record yet: %s", task, error)


def _listen(keep: Keep, task: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _remove(keep, task)  # that of a proxy that was killed
        with egress.address(keep, task) as place:
            listening.bind(place)
            # Only this sandbox sees the folder; whoever is in it may use its way out.
            os.chmod(place, 0o666)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _remove(keep: Keep, task: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        (egress.folder(keep, task) / egress.SOCKET).unlink()


def _bound_log() -> None:
    """Empty the log when it is too long: what a sandbox does must not fill the disk by being complained about."""
    if os.fstat(sys.stderr.fileno()).st_size > _MAX_LOG_BYTES:
        os.ftruncate(sys.stderr.fileno(), 0)


def _give_up(keep: Keep, lock: int) -> bool:
    """Let go of the lock, and take it back if there is something to serve after all; whether it stays let go."""
    fcntl.flock(lock, fcntl.LOCK_UN)
    if egress.wanted(keep):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    return True


def main() -> None:
    """Serve the keep that the command line names, under the lock that is open as the descriptor it names."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    lock = int(sys.argv[2])
    os.set_inheritable(lock, False)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # or a few tasks could take all there are
    with Keep.open(Path(sys.argv[1]), actor=ACTOR) as keep:
        asyncio.run(run(keep, lock))


if __name__ == "__main__":
    main()
