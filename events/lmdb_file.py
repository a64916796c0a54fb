"""The file of an LMDB environment: made so that no crash leaves a part of one behind, and not mapped if it was cut.

`make` gives a new file its name when it is whole and durable. LMDB itself makes a file under its own name, page by
page, and does not sync the folder that the name is in. A power loss could then leave what cannot be opened, or take a
file away whose commits were all synced (fsync(2)).

Safe to call from several threads and processes at once.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import lmdb


def make(path: Path, databases: Sequence[bytes], entries: Mapping[bytes, bytes], *, map_bytes: int) -> None:
    """Make the file `path` with these databases, and `entries` in the first of them, unless another process is faster.

    Its folder has to be synced by whoever relies on its name. Raises `lmdb.Error` and `OSError`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with contextlib.closing(
            lmdb.open(
                os.fspath(temporary),
                map_size=map_bytes,
                max_dbs=len(databases),
                mode=0o600,
                subdir=False,
                lock=False,
                sync=False,
            )
        ) as env:
            first, *_ = [env.open_db(name) for name in databases]
            with env.begin(db=first, write=True) as txn:
                for key, value in entries.items():
                    txn.put(key, value)
            env.sync(True)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_cut(path: Path) -> bool:
    """Whether the file of the environment in `path` ends before the last page that it speaks of, which may be one that
    was never written. Not told of an environment that this process has open, and of what is none."""
    try:
        with lmdb.open(os.fspath(path), readonly=True, lock=False, create=False) as env:
            wanted = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        return (path / "data.mdb").stat().st_size < wanted
    except (lmdb.Error, OSError):
        return False
