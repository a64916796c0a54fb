"""Whether a keep is what it was: its log, the blobs that the log vouches for, and the projections made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sandkeep.events import BlobDamaged, BlobMissing, Event, verify
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes.manifest import blobs_of

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep


class KeepReport(msgspec.Struct, frozen=True):
    """What was found. `head` is the last position, `events` the number of events, `checksum` that of the last frame.

    `blobs` counts the blobs that were read and compared with their digests; `damage` has a line for each thing that is
    not as it was. Behind a damaged log neither blobs nor projections are looked at: they can only be judged by it.
    """

    ok: bool
    head: int
    events: int
    checksum: str
    blobs: int
    damage: tuple[str, ...]


def verify_log(path: Path, progress: Callable[[str], None], *, deep: bool = False) -> KeepReport:
    """Verify the log of the keep in `path`, in a process of its own, and its journal.

    If `deep`, also how the log's pages lie, and the journal's compressed segments.
    """
    progress("verifying the log")
    log = verify.verify(path / "log", deep=deep)
    damage = tuple(f"log: {words}" for words in log.damage)
    if log.damaged > len(damage):
        damage += (f"log: {log.damaged - len(damage)} more",)
    if log.ok:
        progress("verifying the journal")
        damage = tuple(f"journal: {words}" for words in verify.verify_journal(path / "journal", log, deep=deep))
    return KeepReport(not damage, log.head, log.events, log.checksum, 0, damage)


def verify_keep(keep: Keep, progress: Callable[[str], None]) -> KeepReport:
    """Verify all of an open keep, while others go on with it."""
    log = verify_log(keep.path, progress)
    if not log.ok:
        return log
    damage: list[str] = []
    seen: set[str] = set()
    for record in keep.log.read():
        for digest, tree in _references(record.event):
            try:
                for blob in blobs_of(digest, keep.blobs) if tree else (digest,):
                    if blob not in seen:
                        seen.add(blob)
                        progress(f"verifying blobs: {len(seen)}")
                        _read(keep, blob)
            except (BlobDamaged, BlobMissing) as error:
                damage.append(f"blobs: position {record.position}: {error}")
    progress("verifying the projections")
    with keep.projections.reading() as state:
        position = keep.projections.position(state)
        found = keep.projections.digest(state)
    if keep.projections.digest(keep.projections.as_of(position)) != found:
        damage.append("projections: they are not what the log makes of them; 'sandkeep replay' rebuilds them")
    return KeepReport(not damage, log.head, log.events, log.checksum, len(seen), tuple(damage))


def _references(event: Event) -> Iterator[tuple[str, bool]]:
    """The blobs that an event vouches for; true with those that are the root of a tree."""
    match event:
        case ev.CommandExecuted():
            for output in (event.stdout, event.stderr):
                if output.blob is not None:
                    yield output.blob, False
        case ev.CheckpointCreated():
            yield event.digest, True


def _read(keep: Keep, digest: str) -> None:
    for _ in keep.blobs.chunks(digest):
        pass
