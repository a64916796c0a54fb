"""Publishing: signing what a log holds, so that it cannot be rewritten unseen.

The leaves of the log's Merkle tree are the exact bytes of its records, in the order of their positions; the tree of the
first n records is signed as a checkpoint note (see `note`) and kept with the log. Nothing of this is on the way of a
commit: the tree goes on from the peaks that the newest note was stored with, so publishing reads only what is new.

A log never signs two trees of which one does not begin with the other. So the stored peaks are taken up only if they
give the root that the newest note states, and that note only if it bears the log's own signature.
"""

from __future__ import annotations

from sandkeep.events.errors import LogDamaged
from sandkeep.events.lmdb_layout import Published
from sandkeep.events.lmdb_log import LmdbLog
from sandkeep.events.log import View
from sandkeep.events.merkle import Peaks, leaf_hash
from sandkeep.events.note import Checkpoint, Signer, VerifierKey, open_checkpoint


def publish(log: LmdbLog[View], signer: Signer) -> bytes:
    """The signed note for all records there are now: the newest one if it is for them, or else a new one, stored.

    Safe to call from several threads and processes at once. Raises `BadNote` or `LogDamaged` and signs nothing if the
    newest note is not this log's, and what reading and writing a log raises.
    """
    newest = log.newest_note()
    peaks = Peaks() if newest is None else _take_up(*newest, signer.key)
    size = log.head().position
    if size < peaks.size:
        raise LogDamaged(
            f"the log ends at position {size}, but a note was published for {peaks.size} records; run 'sandkeep verify'"
        )
    if newest is not None and size == peaks.size:
        return newest[1].note
    for leaf in log.leaves(peaks.size, until=size):
        peaks.append(leaf_hash(leaf))
    if peaks.size != size:
        raise LogDamaged(f"the log holds {peaks.size} records, but its head is at {size}; run 'sandkeep verify'")
    note = signer.sign(Checkpoint(signer.key.name, size, peaks.root()).text)
    log.add_note(size, Published(note, peaks.hashes))
    return note


def unpublished(log: LmdbLog[View]) -> int:
    """How many records there are behind the newest note."""
    newest = log.newest_note()
    return log.head().position - (0 if newest is None else newest[0])


def _take_up(size: int, published: Published, key: VerifierKey) -> Peaks:
    checkpoint = open_checkpoint(published.note, key)
    try:
        peaks = Peaks(size, published.peaks)
    except ValueError as error:
        raise LogDamaged(f"the newest note is stored with what is no tree: {error}; run 'sandkeep verify'") from error
    if checkpoint.size != size or checkpoint.root != peaks.root():
        raise LogDamaged("the newest note is stored with another tree than it was signed for; run 'sandkeep verify'")
    return peaks
