"""Generations: the folders that the projections' state lies in, and which of them is in use.

A *generation* is a folder `<root>/<name>/` with an LMDB environment. The file `current` names the one in use and the
boot of the machine that it was made under. Nothing here is ever synced, so after a power loss the pages may be
anything: a generation of another boot, of other projections or versions, or of another log is not opened but replaced.
The file `rebuilding` names, in the same way, one that a rebuild has begun; the next rebuild goes on with it.

Choosing and replacing the one in use is done under the file lock `lock`, rebuilding under `rebuild.lock`.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, final

import lmdb
import msgspec

from sandkeep.events.lmdb_file import is_cut

_logger = logging.getLogger(__name__)

MAP_SIZE = 64 << 30
POSITION, IDENTITY, RETIRED = b"!position", b"!identity", b"!retired"
_MAX_READERS = 1024


class _Named(msgspec.Struct, frozen=True):
    generation: str
    boot_id: str


@final
class Generations:
    """The generations in the folder `root`, of a state with this `identity`, while the machine's boot is `boot_id`."""

    def __init__(self, root: Path, identity: bytes, boot_id: str) -> None:
        """Make the folder if it is not there."""
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root = root
        self._identity = identity
        self._boot_id = boot_id

    @contextlib.contextmanager
    def exclusive(self, what: Literal["lock", "rebuild.lock"] = "lock") -> Iterator[None]:
        """One process, and one thread of it, at a time. Cannot be nested."""
        with open(self._root / what, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def current(self, head: int) -> lmdb.Environment | None:
        """The generation in use, if it is one of this boot, identity, and not of a position past `head`."""
        return self._open("current", head)

    def unfinished(self, head: int) -> tuple[str, lmdb.Environment] | None:
        """The generation that a rebuild has begun and not ended."""
        env = self._open("rebuilding", head)
        return None if env is None else (Path(env.path()).name, env)

    def begin(self, role: Literal["current", "rebuilding"]) -> tuple[str, lmdb.Environment]:
        """A new, empty generation in the place of the one in this role."""
        name = secrets.token_hex(8)
        env = open_environment(self._root / name)
        with env.begin(write=True) as txn:
            txn.put(IDENTITY, self._identity)
        self._name(role, name)
        self.remove_others()
        return name, env

    def take_up(self, name: str) -> None:
        """The generation that was rebuilt is the one in use from now on."""
        self._name("current", name)
        with contextlib.suppress(FileNotFoundError):
            (self._root / "rebuilding").unlink()

    def remove_others(self) -> None:
        """Remove the generations that nothing names."""
        named = {found.generation for role in ("current", "rebuilding") if (found := self._named(role)) is not None}
        for path in self._root.iterdir():
            if path.is_dir() and path.name not in named and path.name != SNAPSHOTS:
                shutil.rmtree(path, ignore_errors=True)

    def _named(self, role: str) -> _Named | None:
        try:
            found = msgspec.json.decode((self._root / role).read_bytes(), type=_Named)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return found if found.generation.isalnum() else None

    def _open(self, role: str, head: int) -> lmdb.Environment | None:
        named = self._named(role)
        if named is None or named.boot_id != self._boot_id:
            return None
        path = self._root / named.generation
        if not path.is_dir():
            return None
        if is_cut(path):  # mapping it would end this process
            _logger.warning("the projections in %s were cut and are made anew", path)
            return None
        try:
            env = open_environment(path)
            with env.begin() as txn:
                fit = txn.get(IDENTITY) == self._identity and txn.get(RETIRED) is None
                fit = fit and position_of(txn) <= head
        except lmdb.Error as error:
            # A cache that cannot be opened is replaced like one that does not fit.
            _logger.warning("the projections in %s cannot be opened (%s) and are made anew", path, error)
            return None
        if not fit:
            env.close()
            return None
        return env

    def _name(self, role: str, name: str) -> None:
        temporary = self._root / f".{role}-{name}"
        temporary.write_bytes(msgspec.json.encode(_Named(name, self._boot_id)))
        temporary.replace(self._root / role)


SNAPSHOTS = "snapshots"
"""The folder beside the generations that is none: see `snapshots`."""


def open_environment(path: Path) -> lmdb.Environment:
    """The environment in `path`, which is made if it is not there."""
    path.mkdir(mode=0o700, exist_ok=True)  # LMDB would make it without the permission to enter it
    env = lmdb.open(
        os.fspath(path), map_size=MAP_SIZE, max_readers=_MAX_READERS, mode=0o600, sync=False, metasync=False
    )
    # A reader that was killed would hold its place in the table, and old pages, for ever.
    env.reader_check()
    return env


def position_of(txn: lmdb.Transaction[bytes]) -> int:
    """The position that the state is of."""
    return int.from_bytes(txn.get(POSITION) or b"", "big")
