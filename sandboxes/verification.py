"""Whether a keep is what it was: its log, the blobs that the log vouches for, and the projections made from it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sandkeep.events import BlobDamaged, BlobMissing, verify
from sandkeep.events.catalogue import references
from sandkeep.events.vouched import Trees
from sandkeep.sandboxes import memory
from sandkeep.sandboxes.audit import keep_signer, signer
from sandkeep.sandboxes.damage import Affected, affected
from sandkeep.sandboxes.errors import KeyUnavailable
from sandkeep.sandboxes.manifest import blobs_of

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep


MOST_AFFECTED = 100
"""How many paths that cannot be restored are named."""


class KeepReport(msgspec.Struct, frozen=True):
    """What was found. `head` is the last position, `events` the number of events, `checksum` that of the last frame.

    `notes` counts the published notes that the log agrees with, `blobs` the blobs that were read and compared with
    their digests; `damage` has a line for each thing that is not as it was. Behind
    a damaged log neither blobs nor projections are looked at: they can only be judged by it.
    """

    ok: bool
    head: int
    events: int
    checksum: str
    blobs: int
    damage: tuple[str, ...]
    notes: int = 0


def verify_log(
    path: Path, progress: Callable[[str], None], identity: str | None = None, *, deep: bool = False
) -> KeepReport:
    """Verify the log of the keep with this id in `path`, and the notes published for it, in a process of its own, and
    its journal.

    If `deep`, also how the log's pages lie, and the journal's compressed segments.
    """
    progress("verifying the log")
    unsigned: tuple[str, ...] = ()
    try:
        key = None if identity is None else signer(path, identity).key
    except KeyUnavailable as error:  # the notes are compared with the log all the same
        key = None
        unsigned = (f"keys: {error}",)
    log = verify.verify(path / "log", key, deep=deep)
    damage = tuple(f"log: {words}" for words in log.damage)
    if log.damaged > len(damage):
        damage += (f"log: {log.damaged - len(damage)} more",)
    damage += unsigned
    if log.ok:
        progress("verifying the journal")
        damage += tuple(f"journal: {words}" for words in verify.verify_journal(path / "journal", log, deep=deep))
    return KeepReport(not damage, log.head, log.events, log.checksum, 0, damage, log.notes)


def verify_keep(keep: Keep, progress: Callable[[str], None]) -> KeepReport:
    """Verify all of an open keep, while others go on with it."""
    log = verify_log(keep.path, progress, keep.id)
    if not log.ok:
        return log
    damage: list[str] = []
    try:
        keep_signer(keep)
    except KeyUnavailable as error:
        damage.append(f"keys: {error}")
    keep.blobs.forget()
    seen: set[str] = set()
    trees = Trees()
    vouched = len(damage)
    for record in keep.log.read():
        if trees.take(record):
            continue
        for digest, _, _ in references(record.event):
            damage += _blob(keep, record.position, digest, seen, progress)
    for digest, position in trees.left().items():
        before = len(damage)
        try:
            for blob in blobs_of(digest, keep.blobs):
                damage += _blob(keep, position, blob, seen, progress)
        except (BlobDamaged, BlobMissing) as error:  # a manifest, which nothing behind it can be found without
            words = f"blobs: position {position}: {error}"
            damage += [words] if words not in damage[before:] else []
    if len(damage) > vouched:
        progress("looking for what that damage affects")
        damage += affects(affected(keep, {digest for digest in seen if any(_read(keep, digest))}))
    progress("verifying the memory folders")
    for task in keep.tasks():
        damage += [f"memory: task {task.id}: {words}" for words in memory.check(keep, task.id)]
    progress("verifying the projections")
    with keep.projections.reading() as state:
        position = keep.projections.position(state)
        found = keep.projections.digest(state)
    if keep.projections.digest(keep.projections.refold(position)) != found:
        damage.append("projections: they are not what the log makes of them; 'sandkeep replay' rebuilds them")
    return KeepReport(not damage, log.head, log.events, log.checksum, len(seen), tuple(damage), log.notes)


def affects(found: Iterator[Affected]) -> list[str]:
    """What cannot be restored, in words."""
    lines = [
        f"checkpoints: {each.checkpoint} of task {each.task}: {each.path or '/'!r} cannot be restored"
        for each in itertools.islice(found, MOST_AFFECTED)
    ]
    if lines:
        more = sum(1 for _ in found)
        lines += [f"checkpoints: {more} more paths"] if more else []
        lines.append("checkpoints: 'sandkeep repair-checkpoints' looks for another copy of what is damaged")
    return lines


def referenced(keep: Keep, grace_seconds: float = 0.0) -> set[str]:
    """The digests of every blob that the log vouches for, but for what only checkpoints hold that expired longer than
    `grace_seconds` ago. Raises `BlobMissing` or `BlobDamaged` for a manifest."""
    found: set[str] = set()
    trees = Trees(time.time_ns() - int(grace_seconds * 1e9))
    for record in keep.log.read():
        if not trees.take(record):
            found.update(each.digest for each in references(record.event))
    for digest in trees.left():
        if digest not in found:
            found.update(blobs_of(digest, keep.blobs))
    return found


def _blob(keep: Keep, position: int, blob: str, seen: set[str], progress: Callable[[str], None]) -> list[str]:
    """What is wrong with a blob that has not been `seen`, if anything is."""
    if blob in seen:
        return []
    seen.add(blob)
    progress(f"verifying blobs: {len(seen)}")
    return [f"blobs: position {position}: {words}" for words in _read(keep, blob)]


def _read(keep: Keep, digest: str) -> Iterator[str]:
    """What is wrong with a blob, if anything is."""
    try:
        for _ in keep.blobs.chunks(digest):
            pass
    except (BlobDamaged, BlobMissing) as error:
        yield str(error)
