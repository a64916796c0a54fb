"""What is kept of a workspace beside it, so that its changes can be found, kept, merged and taken back.

The *shadow* of a task holds the last survey of its workspace and every content that was seen in it since, unsynced: it
is a cache, and goes with the task's folder. What the log is to vouch for moves from it to the keep's blobs.

Used under `keep.working(task)` only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import final

import msgspec

from sandkeep.events import BlobDamaged, BlobMissing, BlobStore
from sandkeep.events.catalogue import Version
from sandkeep.sandboxes import collision, merge, place, refs, survey
from sandkeep.sandboxes.errors import ConflictRefused
from sandkeep.sandboxes.manifest import Entry, Kind
from sandkeep.sandboxes.survey import Seen, Survey
from sandkeep.sandboxes.workspace import owner

POINTER = "pointer"
"""The kind of a branch or a submodule: its content is a commit's id."""

_SPARE = 1000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@final
class Shadow:
    """The shadow of the workspace in a task's folder. A context manager that closes itself."""

    def __init__(self, folder: Path, blobs: BlobStore) -> None:
        """Raises `OSError` if there is no workspace."""
        self._root = os.open(folder / "workspace", _FOLDER)
        self._blobs = blobs
        self._folder = folder / "shadow"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._contents = BlobStore(self._folder / "contents", synced=False)

    def __enter__(self) -> Shadow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._root)

    def load(self) -> Survey | None:
        """The last survey, if there was one."""
        return survey.load(self._folder / "survey")

    def save(self, found: Survey) -> None:
        """Make this the last survey."""
        survey.save(self._folder / "survey", found)

    def look(self, before: Survey | None) -> dict[str, Seen]:
        """What lies in the workspace now, its repository's branches and submodules included."""
        found = survey.look(self._root, self._contents, before.files if before else {})
        for path, commit in refs.pointers(self._root).items():
            content = commit + b"\n"
            version = Version(POINTER, self._contents.put(content), len(content), 0o644)
            found[survey.text(path)] = Seen((), version)
        return found

    def follows(self, later: Version, earlier: Version) -> bool:
        """Whether a branch that was at `earlier` only goes on from there."""
        return refs.follows(self._root, self.content(later).strip(), self.content(earlier).strip())

    def kept(self, versions: Iterable[Version | None]) -> Callable[[Version | None], Version | None]:
        """Keep what the shadow has of these contents; the function given back takes the digest off what it has not."""
        stored = self._blobs.adopt(self._contents, sorted({each.digest for each in versions if each and each.digest}))

        def kept(version: Version | None) -> Version | None:
            if version is None or not version.digest or version.digest in stored:
                return version
            return msgspec.structs.replace(version, digest="")

        return kept

    def content(self, version: Version) -> bytes:
        """Content as it was seen, wherever it is by now."""
        for store in (self._contents, self._blobs):
            try:
                return store.get(version.digest) if version.digest else b""
            except (BlobMissing, BlobDamaged):
                continue
        return b""

    def merged(self, base: Version | None, ours: Version | None, theirs: Version | None) -> merge.Merged | None:
        """Both sides' contents merged; None if they cannot be."""
        sides = [each for each in (ours, theirs, base) if each is not None]
        if ours is None or theirs is None or any(each.kind != Kind.FILE or not each.digest for each in sides):
            return None
        if max(each.size for each in sides) > merge.MAX_BYTES:
            return None
        before = self.content(base) if base is not None else b""
        return merge.merge(before, self.content(ours), self.content(theirs), self._folder)

    def sweep(self, files: Iterable[Seen]) -> None:
        """Forget what was overwritten and kept, once the shadow holds twice what the workspace does."""
        wanted = {seen.version.digest for seen in files}
        folders = self._folder / "contents"
        if sum(len(os.listdir(each)) for each in folders.iterdir() if each.is_dir()) > 2 * len(wanted) + _SPARE:
            self._contents.sweep(wanted.__contains__, 0)

    def write(self, path: str, present: Seen | None, result: Version | None) -> Seen | None:
        """Put `result` where `present` was seen, and return what is there then.

        Raises `ConflictRefused` if something else is there now, or this cannot be put there.
        """
        name = survey.raw(path)
        branch = path.startswith(collision.BRANCHES)
        if path.endswith("/") or (branch and result is None and refs.packed(self._root, name)):
            raise ConflictRefused(f"{path!r} can only be set by git, inside the sandbox; do that, then take ours")
        entry = None
        if result is not None:
            if result.kind not in (Kind.FILE, Kind.LINK, POINTER):
                raise ConflictRefused(f"a {result.kind} cannot be put back at {path!r}; make it anew, then take ours")
            what = Kind.LINK if result.kind == Kind.LINK else Kind.FILE
            target = self._blobs.get(result.digest) if what is Kind.LINK else b""
            entry = Entry(b"-", what, result.mode, *owner(), time.time_ns(), result.size, result.digest, target)
        if not branch and _version(survey.look_at(self._root, path, self._contents)) != _version(present):
            raise ConflictRefused(f"{path!r} is being written to; try again when that has ended")
        try:
            place.put(self._root, name, entry, self._blobs)
        except OSError as error:
            raise ConflictRefused(f"{path!r} cannot be written ({error.strerror}); see what is there now") from error
        return Seen((), result) if branch and result else survey.look_at(self._root, path, self._contents)


def _version(seen: Seen | None) -> Version | None:
    return None if seen is None else seen.version
