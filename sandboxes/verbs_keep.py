"""What the verbs for a keep as a whole do: calls of the library, and documents of what it gave. They hold no logic."""

from __future__ import annotations

import queue
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from sandkeep.events import recovery
from sandkeep.events.audit import AuditReport
from sandkeep.events.recovery import Mode, Recovery
from sandkeep.sandboxes import audit, documents_keep
from sandkeep.sandboxes.audit import Exported
from sandkeep.sandboxes.doctor import examine, healthy
from sandkeep.sandboxes.door import Door
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.identity import FORMAT, default_actor, identify
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.verification import KeepReport, verify_log

_LOOK_SECONDS = 0.5


def init(door: Door) -> documents_keep.MadeKeep:
    """Make a keep; see `Keep.init`."""
    with Keep.init(door.path, actor=door.actor) as made:
        return documents_keep.MadeKeep(str(made.path), made.id, FORMAT)


def verify(door: Door, *, deep: bool = False) -> KeepReport:
    """Compare all of a keep with what its log vouches for; see `verification`."""
    path = door.path.absolute()
    report = verify_log(path, door.progress, identify(path), deep=deep)
    return door.keep.verify(door.progress) if report.ok else report


def recover(door: Door, *, mode: str = "strict") -> Recovery:
    """Make a damaged log whole again; see `recovery`."""
    path = door.path.absolute()
    identify(path)
    door.progress("recovering the log")
    return recovery.recover(path, Mode(mode), actor=door.actor or default_actor())


def replay(door: Door) -> documents_keep.Replayed:
    """Rebuild what is true now, and compare; see `Keep.replay`."""
    begun = time.perf_counter()
    door.progress("replaying")
    total = door.keep.head().position
    rebuilt = door.keep.replay(lambda done: door.measured(done, total, size=False))
    taken = round(time.perf_counter() - begun, 6)
    return documents_keep.Replayed(rebuilt.same, rebuilt.position, rebuilt.after, rebuilt.before, taken)


def doctor(door: Door) -> documents_keep.Examined:
    """Look at all that a keep needs; see `doctor`."""
    found = examine(door.path.absolute(), Engine(), door.opened)
    return documents_keep.Examined(healthy(found), found)


def steward(door: Door) -> Generator[documents_keep.Did, None, None]:
    """Do a keep's background work until interrupted, which is how it is meant to end; see `Keep.steward`."""
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    running = door.keep.steward(said.put)
    try:
        with running:
            while not running.join(0):
                try:
                    line = said.get(timeout=_LOOK_SECONDS)
                except queue.Empty:
                    continue
                yield documents_keep.Did(line)
    except KeyboardInterrupt:
        return


def audit_key(door: Door) -> documents_keep.Key:
    """The key that auditors must have; see `Keep.audit_key`."""
    return documents_keep.Key(str(door.keep.audit_key))


def audit_checkpoint(door: Door) -> documents_keep.Note:
    """Sign what the log holds now; see `Keep.publish_checkpoint`."""
    return documents_keep.Note(door.keep.publish_checkpoint().decode())


def audit_export(
    door: Door,
    *,
    file: str,
    task: str | None = None,
    first: int | None = None,
    last: int | None = None,
    blobs: str = "include",
) -> Exported:
    """Write a bundle for auditors; see `Keep.export_audit`."""
    return door.keep.export_audit(
        file, task=task, first=first, last=last, blobs=blobs == "include", progress=door.progress
    )


def audit_verify(door: Door, *, bundle: str, key: str, note: Sequence[str] = ()) -> AuditReport:
    """Judge a bundle, without a keep; see `verify_bundle`."""
    seen = [audit.read_note(Path(each)) for each in note]
    return audit.verify_bundle(Path(bundle), key, seen=seen)
