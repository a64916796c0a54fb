"""Published notes outlive a recovery, and say when something is missing."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import lmdb
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sandkeep.events import LmdbLog, notary
from sandkeep.events.errors import RecoveryRefused
from sandkeep.events.lmdb_layout import place
from sandkeep.events.note import Signer
from sandkeep.events.recovery import Mode, recover
from sandkeep.events.verify import verify

from .support import done

SIGNER = Signer("sandkeep/test", Ed25519PrivateKey.from_private_bytes(bytes(32)))


@pytest.fixture
def keep(tmp_path: Path) -> Path:
    """A keep whose four records were published after two and four."""
    with closing(LmdbLog[None](tmp_path / "log", journal=tmp_path / "journal")) as log:
        for number in range(4):
            log.append("task/a", done(str(number)), actor="me")
            if number % 2:
                notary.publish(log, SIGNER)
    return tmp_path


def drop_frame(keep: Path, position: int) -> None:
    with lmdb.open(str(keep / "log"), max_dbs=6) as env, env.begin(write=True) as txn:
        txn.delete(place(position), db=env.open_db(b"frames", txn=txn))


def test_notes_are_carried_over(keep: Path) -> None:
    drop_frame(keep, 3)
    assert recover(keep, Mode.STRICT, actor="me").ok
    report = verify(keep / "log", SIGNER.key)
    assert report.ok, report.damage
    assert report.notes == 2
    with closing(LmdbLog[None](keep / "log", journal=keep / "journal")) as log:
        assert sorted(size for size, _ in log.notes()) == [2, 4]
        notary.publish(log, SIGNER)  # goes on from the peaks


def test_a_note_for_more_than_was_kept_is_a_loss(keep: Path) -> None:
    drop_frame(keep, 4)
    shutil.rmtree(keep / "journal")
    with pytest.raises(RecoveryRefused, match="up to position 3, but 1 behind it are lost"):
        recover(keep, Mode.STRICT, actor="me")
    assert not recover(keep, Mode.TRUNCATE_TAIL, actor="me").ok
    with closing(LmdbLog[None](keep / "log", journal=keep / "journal")) as log:
        assert sorted(size for size, _ in log.notes()) == [2]
