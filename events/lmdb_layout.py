"""How a log lies in its LMDB environment: the databases, and their keys.

All keys are big-endian, so that LMDB's byte order is the log's order:

    meta     "format", "log_id"
    frames   first position                 -> frame (see `codec`)
    streams  stream, NUL, revision          -> position
    keys     stream, NUL, idempotency key   -> digest of what was asked, and the receipt
    fences   stream                         -> the highest fencing token seen
"""

from __future__ import annotations

import os
import secrets
import struct
from pathlib import Path
from typing import final

import lmdb
import msgspec

from sandkeep.events.errors import LogDamaged, LogUnavailable
from sandkeep.events.log import Receipt

FORMAT = 1
"""The version of the layout above."""

MAP_BYTES = 64 << 30
"""Address space for the log, and so its largest size; the file grows only as it is written."""

_U64 = struct.Struct(">Q")


class Used(msgspec.Struct, frozen=True, array_like=True):
    """What an idempotency key was used for."""

    request: bytes
    receipt: Receipt


encode_used = msgspec.msgpack.Encoder().encode
decode_used = msgspec.msgpack.Decoder(Used).decode


@final
class Layout:
    """The open environment of a log and its databases."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        """Open the environment in `path`; unless `readonly`, make what is missing.

        Raises `LogUnavailable` if this process has it open already or it cannot be opened, `LogDamaged` if it holds no
        log or one of another format.
        """
        create = not readonly
        try:
            if create:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.env = lmdb.open(
                os.fspath(path), map_size=MAP_BYTES, max_dbs=5, mode=0o600, readonly=readonly, create=create
            )
        except (lmdb.Error, OSError) as error:
            raise LogUnavailable(f"the log in {path} cannot be opened: {error}") from error
        try:
            self.meta = self.env.open_db(b"meta", create=create)
            self.frames = self.env.open_db(b"frames", create=create)
            self.streams = self.env.open_db(b"streams", create=create)
            self.keys = self.env.open_db(b"keys", create=create)
            self.fences = self.env.open_db(b"fences", create=create)
            self.log_id = self._identify(path, create)
        except lmdb.Error as error:
            self.env.close()
            raise LogDamaged(f"{path} holds no whole log: {error}") from error
        except LogDamaged:
            self.env.close()
            raise

    def _identify(self, path: Path, create: bool) -> bytes:
        with self.env.begin(db=self.meta, write=create) as txn:
            if create and txn.stat(self.meta)["entries"] == 0:
                txn.put(b"format", str(FORMAT).encode())
                txn.put(b"log_id", secrets.token_bytes(16))
            found, log_id = txn.get(b"format"), txn.get(b"log_id")
        if found is None or log_id is None:
            raise LogDamaged(f"{path} holds no log: its format and id are missing")
        if found != str(FORMAT).encode():
            raise LogDamaged(f"the log in {path} has format {found!r}; this version reads format {FORMAT}")
        return log_id


def place(position: int) -> bytes:
    """A position as a key or value."""
    return _U64.pack(position)


def position_at(place: bytes) -> int:
    """The position that `place` encodes."""
    found: int = _U64.unpack(place)[0]
    return found


def stream_key(stream: str, revision: int) -> bytes:
    """The key of one revision of a stream."""
    return stream.encode() + b"\0" + _U64.pack(revision)


def split_stream_key(key: bytes) -> tuple[str, int]:
    """The stream and revision of a key."""
    return key[:-9].decode(), _U64.unpack(key[-8:])[0]


def idempotency_key(stream: str, key: str) -> bytes:
    """The key under which the use of an idempotency key is kept."""
    return stream.encode() + b"\0" + key.encode()
