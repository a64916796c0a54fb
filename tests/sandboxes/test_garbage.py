"""What no event refers to can be removed, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandkeep.events import BlobDamaged
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, manifest
from sandkeep.sandboxes.manifest import Entry, Kind

NOTHING = ev.Output(size=0, data=b"")


def tree(keep: Keep, content: bytes) -> str:
    """A checkpoint's tree: one file in one folder."""
    file = Entry(b"file", Kind.FILE, 0o644, 0, 0, 0, len(content), keep.blobs.put(content))
    inner = manifest.store({file.name: file}, keep.blobs)
    return manifest.store({b"folder": Entry(b"folder", Kind.FOLDER, 0o755, 0, 0, 0, 0, inner)}, keep.blobs)


def test_only_what_no_event_refers_to_is_removed(tmp_path: Path) -> None:
    with Keep.init(tmp_path / "keep") as keep:
        root, output = tree(keep, b"kept"), keep.blobs.put(b"output")
        events = [
            ev.CheckpointCreated("c", root, 1, 4, ""),
            ev.CommandExecuted("i", 0, 1, False, ev.Output(size=6, blob=output), NOTHING),
        ]
        keep.log.append("task/a", events, actor="me")
        garbage = keep.blobs.put(b"garbage")
        assert keep.collect_garbage() == (0, 0)
        removed, _ = keep.collect_garbage(grace_seconds=-1)
        assert (removed, garbage in keep.blobs) == (1, False)
        assert keep.blobs.get(output) == b"output"
        assert {keep.blobs.get(digest) for digest in manifest.blobs_of(root, keep.blobs)} >= {b"kept"}
        assert keep.verify().ok


def test_nothing_is_removed_while_a_manifest_is_damaged(tmp_path: Path) -> None:
    with Keep.init(tmp_path / "keep") as keep:
        root = tree(keep, b"kept")
        keep.log.append("task/a", [ev.CheckpointCreated("c", root, 1, 4, "")], actor="me")
        garbage = keep.blobs.put(b"garbage")
        (keep.path / "blobs" / root[:2] / root[2:]).write_bytes(b"no manifest")
        with pytest.raises(BlobDamaged):
            keep.collect_garbage(grace_seconds=-1)
        assert garbage in keep.blobs
