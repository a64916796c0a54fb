"""Manifests: the same tree is the same digest, and what is read is checked."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest

from sandkeep.events import BlobDamaged, BlobMissing, BlobStore
from sandkeep.sandboxes import manifest
from sandkeep.sandboxes.manifest import Entry, Kind


def a_file(name: bytes, content: str = "0" * 64) -> Entry:
    return Entry(name, Kind.FILE, 0o644, 1, 2, -3, 4, content)


def test_a_manifest_is_read_as_it_was_stored(blobs: BlobStore) -> None:
    entries = {
        entry.name: entry
        for entry in (
            a_file(b"\xff\n"),
            Entry(b"folder", Kind.FOLDER, 0o1777, 0, 0, 2**62, content="1" * 64),
            Entry(b"link", Kind.LINK, 0o777, 0, 0, 0, target=b"\xff/.."),
            Entry(b"fifo", Kind.FIFO, 0o600, 0, 0, 0),
            Entry(b"socket", Kind.SOCKET, 0o600, 0, 0, 0),
        )
    }
    assert manifest.load(manifest.store(entries, blobs), blobs) == entries


def test_the_order_in_which_names_were_found_does_not_count(blobs: BlobStore) -> None:
    one, two = a_file(b"one"), a_file(b"two")
    assert manifest.store({b"one": one, b"two": two}, blobs) == manifest.store({b"two": two, b"one": one}, blobs)


@pytest.mark.parametrize(
    "other",
    [
        {"name": b"b"},
        {"mode": 0o600},
        {"uid": 9},
        {"gid": 9},
        {"mtime_ns": -4},
        {"size": 5},
        {"content": "1" * 64},
        {"target": b"x"},
        {"kind": Kind.FIFO},
    ],
    ids=str,
)
def test_everything_about_an_entry_counts_towards_the_digest(blobs: BlobStore, other: dict[str, object]) -> None:
    entry = a_file(b"a")
    changed = msgspec.structs.replace(entry, **other)
    assert manifest.store({entry.name: entry}, blobs) != manifest.store({changed.name: changed}, blobs)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/etc", b"a\0b"])
def test_a_name_that_leads_out_of_its_folder_is_damage(blobs: BlobStore, name: bytes) -> None:
    digest = manifest.store({name: a_file(name)}, blobs)
    with pytest.raises(BlobDamaged, match="is no name"):
        manifest.load(digest, blobs)


@pytest.mark.parametrize("content", [b"", b"text", b"\x91\x91\xc4\x01a", b"\xff" * 40], ids=repr)
def test_a_blob_that_is_no_manifest_is_damage(blobs: BlobStore, content: bytes) -> None:
    with pytest.raises(BlobDamaged, match="is no manifest"):
        manifest.load(blobs.put(content), blobs)


def test_the_blobs_of_a_tree_are_named_once_each(blobs: BlobStore) -> None:
    content = blobs.put(b"content")
    shared = manifest.store({b"f": a_file(b"f", content), b"g": a_file(b"g", content)}, blobs)
    folders = {name: Entry(name, Kind.FOLDER, 0o755, 0, 0, 0, content=shared) for name in (b"x", b"y")}
    root = manifest.store(folders, blobs)
    assert sorted(manifest.blobs_of(root, blobs)) == sorted([root, shared, content])


def test_a_missing_subtree_is_missed(blobs: BlobStore) -> None:
    root = manifest.store({b"x": Entry(b"x", Kind.FOLDER, 0o755, 0, 0, 0, content="1" * 64)}, blobs)
    with pytest.raises(BlobMissing):
        list(manifest.blobs_of(root, blobs))


def test_every_mode_has_a_kind(tmp_path: Path) -> None:
    assert manifest.kind(stat.S_IFCHR | 0o666) is Kind.CHARACTER_DEVICE
    assert manifest.kind(stat.S_IFBLK) is Kind.BLOCK_DEVICE
    assert manifest.kind(tmp_path.stat().st_mode) is Kind.FOLDER
