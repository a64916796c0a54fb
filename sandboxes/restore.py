"""Setting a workspace back to what a manifest says.

Two trees are compared by their digests, and only what differs is written (see `restore_plan`): first all that is new is
made in a folder beside the workspace, verified as it is read (see `builder`); then it is renamed to where it belongs,
and what the target lacks is taken away; modes and times are set last, folders after their contents. So what cannot be
read, or finds no room, leaves the workspace as it was. Interrupted at any point it can be run again to the same result.
The root folder itself stays: the sandbox's mount holds on to it.

The workspace is hostile: every step goes through the descriptor of the folder above, and no link is followed. Nothing
is written to a file that has names elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

import msgspec

from sandkeep.events import BlobStore
from sandkeep.events.durable import spread, sync_file_system
from sandkeep.projections import Checkpoint
from sandkeep.sandboxes import place, snapshot
from sandkeep.sandboxes.builder import Builder
from sandkeep.sandboxes.descent import FOLDER, Descent, OtherMount, WayLost
from sandkeep.sandboxes.errors import BadId, CheckpointGone, CheckpointNotFound, RestoreIncomplete, RestoreRefused
from sandkeep.sandboxes.manifest import Entry, Kind, load
from sandkeep.sandboxes.place import granted
from sandkeep.sandboxes.preview import Planned
from sandkeep.sandboxes.restore_plan import Enter, Leave, Plan, Step, plan
from sandkeep.sandboxes.snapshot_walk import Names, readable
from sandkeep.sandboxes.workspace import empty

STAGE = ".sandkeep-restoring"
"""The folder beside a workspace in which what is new is made. What lies in it is of no use to anybody else."""

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Restored(msgspec.Struct, frozen=True):
    """What a restore did: the checkpoint and digest the workspace has now, and the checkpoint that undoes it.

    `stripped` are the paths that were given less than was recorded: devices, which were not made, files without their
    set-user-id and set-group-id, and, unless we are root, what belonged to others. Of a dry run, `planned` is what
    would be done, the digest what the workspace would have then, and there is nothing to undo.
    """

    checkpoint: str
    digest: str
    undo: str
    stripped: tuple[str, ...] = ()
    planned: tuple[Planned, ...] = ()


def find(taken: Sequence[Checkpoint], prefix: str, task: str) -> Checkpoint:
    """The one of a task's checkpoints whose id begins with `prefix`.

    Raises `BadId`, `CheckpointNotFound`, and `CheckpointGone` for one that has expired.
    """
    if not prefix or len(prefix) > 12 or not set(prefix) <= set("0123456789abcdef"):
        raise BadId(f"{prefix[:40]!r} is no checkpoint id; an id has 12 hexadecimal digits")
    found = [each for each in taken if each.id.startswith(prefix)]
    if len(found) != 1:
        raise CheckpointNotFound(
            f"{len(found) or 'no'} checkpoints of task {task} have the id {prefix};"
            f" 'sandkeep list-checkpoints {task}' lists them"
        )
    if found[0].expired_ns:
        raise CheckpointGone(
            f"checkpoint {found[0].id} of task {task} has expired ({found[0].expired}), and its content may be gone;"
            f" 'sandkeep list-checkpoints {task}' lists those there are"
        )
    return found[0]


def refuse_empty(target: Checkpoint, blobs: BlobStore) -> None:
    """Raise `RestoreRefused` if the checkpoint's tree is empty, and its record says that it held files. Raises
    `BlobMissing` and `BlobDamaged` too."""
    if not load(target.digest, blobs) and target.files:
        raise RestoreRefused(
            f"checkpoint {target.id} should hold {target.files} files and holds none, so nothing was changed;"
            " 'sandkeep verify' tells what is wrong"
        )


def incomplete(checkpoint: str, undo: str, error: Exception) -> RestoreIncomplete:
    """What is raised when a restore has failed in the middle."""
    return RestoreIncomplete(
        f"the workspace is only in part what checkpoint {checkpoint} says: {error};"
        f" restore it again, or {undo} to have what was there before"
    )


def apply(root: int, present: str, target: str, blobs: BlobStore, *, privileges: bool = False) -> Names:
    """Make the folder open as descriptor `root`, whose tree is `present` now, into the tree `target`; returns what was
    touched for that. All of it is durable then, also what was so already.

    With `privileges`, devices and files with set-user-id and set-group-id are made too. Raises `BlobMissing`,
    `BlobDamaged` and `RestoreRefused` before anything is touched; `OSError`, and `RestoreIncomplete` if others move
    what is worked on: what was done until then stays, and another run completes it.
    """
    planned = plan(present, target, blobs)
    if planned.is_empty:
        _clear(root)
        sync_file_system(root)
        return {}
    try:
        with _staged(root) as stage:
            restoring = _Restore(stage, planned, blobs, privileges)
            try:
                restoring.prepare()
            except OSError as error:
                raise RestoreRefused(f"nothing was changed, since what is new cannot be made: {error}") from error
            restoring.put(root)
            # Also what stays as it is: whoever wrote it may not have synced it.
            sync_file_system(root)
            return restoring.touched
    except (WayLost, OtherMount) as error:
        raise RestoreIncomplete("a folder was moved, or mounted, while it was set back; try again") from error


def fill(folder: Path, target: str, blobs: BlobStore) -> tuple[str, ...]:
    """Make the empty `folder` the tree `target`, and see that it is; returns what was stripped. Raises as `apply` and
    `check` do."""
    root = os.open(folder, FOLDER)
    try:
        empty_yet = snapshot.take_since(root, blobs, None)
        touched = apply(root, empty_yet.snapshot.digest, target, blobs)
        return check(snapshot.take_touched(root, blobs, empty_yet.seen, touched).snapshot.digest, target, blobs)
    finally:
        os.close(root)


def check(found: str, target: str, blobs: BlobStore, *, privileges: bool = False) -> tuple[str, ...]:
    """See that the tree `found` is what comes of setting back `target`; returns the paths that were stripped for that.

    Raises `RestoreIncomplete`.
    """
    rest = plan(found, target, blobs)
    stripped: list[bytes] = []
    wrong = [] if _is_made(rest.old.folder, rest.new.folder) else [b"."]
    for path, move in rest.paths():
        made = None if move.new is None else granted(move.new, privileges=privileges)
        if isinstance(move, Step):
            (stripped if _is_made(move.old, made) and not move.anew else wrong).append(path)
        elif not _is_made(move.old, made):
            wrong.append(path)
    if wrong:
        raise RestoreIncomplete(f"{len(wrong)} paths are not what was recorded, among them {readable(wrong[0])!r}")
    return tuple(map(readable, stripped))


def _is_made(found: Entry | None, wanted: Entry | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    folder = wanted.kind is Kind.FOLDER and found.kind is Kind.FOLDER
    if folder and wanted.uid < 0:
        return True  # an older checkpoint knows nothing of the root itself
    if os.getuid() != 0:
        wanted = msgspec.structs.replace(wanted, uid=found.uid, gid=found.gid)
    return found == (msgspec.structs.replace(wanted, content=found.content) if folder else wanted)


@contextlib.contextmanager
def _staged(root: int) -> Iterator[int]:
    """A new folder beside the one open as `root`, opened; it is removed at the end, as one that a killed process left
    is at the beginning."""
    above = os.open("..", FOLDER, dir_fd=root)
    try:
        _remove(above)
        os.mkdir(STAGE, 0o700, dir_fd=above)
        stage = os.open(STAGE, FOLDER, dir_fd=above)
        try:
            spread(stage)
            yield stage
        finally:
            os.close(stage)
            _remove(above)
    finally:
        os.close(above)


def _clear(root: int) -> None:
    """Remove what a killed process left beside the folder open as `root`: it may have been about to do just that."""
    above = os.open("..", FOLDER, dir_fd=root)
    try:
        _remove(above)
    finally:
        os.close(above)


def _remove(above: int) -> None:
    try:
        stage = os.open(STAGE, FOLDER, dir_fd=above)
    except FileNotFoundError:
        return
    try:
        empty(stage)
    finally:
        os.close(stage)
    os.rmdir(STAGE, dir_fd=above)


@final
class _Restore:
    def __init__(self, stage: int, planned: Plan, blobs: BlobStore, privileges: bool) -> None:
        self._stage = stage
        self._plan = planned
        self._builder = Builder(stage, blobs, planned.new.links, privileges=privileges)
        self._privileges = privileges
        # The disk is spread by name (see `durable.spread`), so one that was used before would lead to the same place.
        self._token = secrets.token_hex(4)
        self._made: list[bytes] = []
        self._taken = 0
        self.touched: Names = {}
        """What was entered, and made or removed in there."""

    def prepare(self) -> None:
        """Make all that is new in the stage."""
        for path, step in self._plan.steps():
            name = f"new-{self._token}-{len(self._made)}".encode()
            is_made = step.new is not None and not step.is_adjusting and self._builder.make(name, step.new, path)
            self._made.append(name if is_made else b"")

    def put(self, root: int) -> None:
        """Put what was made where it belongs, and take away what does not."""
        made, known = iter(self._made), self._builder.known()
        touched = [self.touched]
        with Descent(root) as way:
            for move in self._plan.moves:
                match move:
                    case Enter():
                        way.enter(move.new.name)
                        place.seize(way.folder)
                        touched.append({})
                        touched[-2][move.new.name] = touched[-1]
                    case Leave():
                        self._builder.leave(way, move.new)
                        touched.pop()
                    case Step():
                        name = next(made)
                        self._step(way.folder, move, name)
                        touched[-1][move.name] = known.get(name)
        if self._plan.new.folder.uid >= 0:
            place.finish(root, self._plan.new.folder, synced=False)

    def _step(self, folder: int, step: Step, made: bytes) -> None:
        if step.is_adjusting:
            assert step.new is not None
            self._adjust(folder, step.new)
            return
        kinds = {entry.kind for entry in (step.old, step.new) if entry is not None}
        if not made or Kind.FOLDER in kinds:
            self._take(folder, step.name)
        if not made:
            return
        if os.getuid() == 0 or step.new is None or step.new.kind is not Kind.FOLDER:
            os.rename(made, step.name, src_dir_fd=self._stage, dst_dir_fd=folder)
            return
        # Who moves a folder has to write to it.
        descriptor = place.open_folder(made, self._stage)
        try:
            os.rename(made, step.name, src_dir_fd=self._stage, dst_dir_fd=folder)
            place.finish(descriptor, step.new, synced=False)
        finally:
            os.close(descriptor)

    def _adjust(self, folder: int, wanted: Entry) -> None:
        """Give a file the owner, mode, attributes and time that it is to have."""
        self._taken += 1
        name = f"adjusted-{self._taken}".encode()
        # Only where nobody else gives and takes names does the number of links tell that it has no name elsewhere.
        os.rename(wanted.name, name, src_dir_fd=folder, dst_dir_fd=self._stage)
        descriptor = os.open(name, _FILE, dir_fd=self._stage)
        try:
            found = os.fstat(descriptor)
            is_ours = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
            if is_ours:
                made = granted(wanted, privileges=self._privileges)
                assert made is not None
                place.finish(descriptor, made, synced=False)
        finally:
            os.close(descriptor)
        if not is_ours:
            name = f"instead-{self._taken}".encode()
            self._builder.make(name, wanted, b"")
        os.rename(name, wanted.name, src_dir_fd=self._stage, dst_dir_fd=folder)

    def _take(self, folder: int, name: bytes) -> None:
        """Take whatever is called `name` out of the workspace, if anything is."""
        try:
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            if os.getuid() != 0:
                os.close(place.open_folder(name, folder))
            self._taken += 1
            os.rename(name, f"taken-{self._taken}".encode(), src_dir_fd=folder, dst_dir_fd=self._stage)
