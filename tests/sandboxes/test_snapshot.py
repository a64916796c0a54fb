"""Snapshots of trees that are hostile, and of trees that change while they are read."""

from __future__ import annotations

import mmap
import os
import resource
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandkeep.events import BlobStore
from sandkeep.sandboxes import content, manifest, snapshot, workspace
from sandkeep.sandboxes.errors import CheckpointRefused
from sandkeep.sandboxes.manifest import Kind
from sandkeep.sandboxes.snapshot_walk import MAX_DEPTH, Snapshot, readable

from ..packed import files_of
from .support import listing, opened, take
from .trees import NAMES, deep, hostile_tree


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder to record, which may become deeper than others can remove."""
    (tmp_path / "tree").mkdir()
    yield tmp_path / "tree"
    workspace.remove(tmp_path / "tree")


def contents(taken: Snapshot, blobs: BlobStore) -> set[bytes]:
    """Every file content that the snapshot holds."""
    return {content for _, content in files_of(taken.digest, blobs)}


def test_all_of_a_hostile_tree_is_recorded(tmp_path: Path, blobs: BlobStore) -> None:
    tree = hostile_tree(tmp_path / "tree")
    expected = listing(tree)
    taken = take(tree, blobs)
    assert taken.torn == ()
    files = [path for path in tree.iterdir() if not path.is_symlink()] + list((tree / "nested").rglob("*"))
    files += [path for folder in tree.glob("folder *") for path in folder.iterdir()]
    sizes = [path.stat().st_size for path in files if path.is_file()]
    assert (taken.files, taken.bytes) == (len(sizes), sum(sizes))
    root = manifest.load(taken.digest, blobs)
    assert set(NAMES) <= set(root)
    for name, entry in root.items():
        mode, uid, gid, mtime_ns, held = expected[name]
        assert (manifest.kind(int(str(mode))), entry.uid, entry.gid, entry.mtime_ns) == (entry.kind, uid, gid, mtime_ns)
        assert entry.mode & 0o1777 == stat.S_IMODE(int(str(mode)))
        if entry.kind is Kind.FILE and entry.extents is None:
            assert blobs.get(entry.content) == held
        elif entry.kind is Kind.LINK:
            assert entry.target == held
    assert root[b"set-user-id"].mode == 0o6755
    assert manifest.load_root(taken.digest, blobs).links == ((b"hard one", b"hard two"),)
    sparse = root[b"sparse"]
    assert (sparse.size, sparse.extents, blobs.get(sparse.content)) == ((1 << 24) + 3, ((1 << 24, 3),), b"end")


def test_recording_changes_nothing(tmp_path: Path, blobs: BlobStore) -> None:
    tree = hostile_tree(tmp_path / "tree")
    before = listing(tree)
    assert take(tree, blobs) == take(tree, blobs)
    assert listing(tree) == before


def test_equal_trees_have_equal_digests_wherever_they_lie(tmp_path: Path, blobs: BlobStore) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_text("x")
        for path in ("sub/file", "sub", "."):
            os.utime(tmp_path / name / path, (1, 1))
    assert take(tmp_path / "one", blobs) == take(tmp_path / "two", blobs)
    (tmp_path / "two" / "sub" / "file").chmod(0o600)
    assert take(tmp_path / "one", blobs).digest != take(tmp_path / "two", blobs).digest


def test_the_number_of_files_is_reported_as_it_grows(folder: Path, blobs: BlobStore) -> None:
    for name in "abc":
        (folder / name).mkdir()
        (folder / name / "file").touch()
    seen: list[int] = []
    with opened(folder) as root:
        snapshot.take(root, blobs, seen.append)
    assert seen == [1, 2, 3, 3]


def test_a_tree_may_be_as_deep_as_promised(folder: Path, blobs: BlobStore) -> None:
    deep(folder, MAX_DEPTH)
    taken = take(folder, blobs)
    assert len(list(manifest.blobs_of(taken.digest, blobs))) == MAX_DEPTH + 2


def test_a_tree_that_is_deeper_is_refused_and_the_place_named(folder: Path, blobs: BlobStore) -> None:
    deep(folder, MAX_DEPTH + 1)
    with pytest.raises(CheckpointRefused, match=f"lies more than {MAX_DEPTH} folders deep"):
        take(folder, blobs)


def test_a_file_of_too_many_bytes_is_refused_unless_they_are_holes(
    folder: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "MAX_FILE_BYTES", 5000)
    (folder / "holes").touch()
    os.truncate(folder / "holes", 1 << 40)
    assert take(folder, blobs).bytes == 1 << 40
    (folder / "huge").write_bytes(bytes(content.AT_ONCE_BYTES))
    with pytest.raises(CheckpointRefused, match="'huge' has 1048576 bytes"):
        take(folder, blobs)


def test_a_device_is_recorded_and_not_opened(folder: Path, blobs: BlobStore) -> None:
    (folder / "file").touch()
    os.mknod(folder / "device", stat.S_IFCHR | 0o600, os.makedev(0, 0))  # the one device that anybody may make
    taken = take(folder, blobs)
    assert taken.torn == ()
    entry = manifest.load(taken.digest, blobs)[b"device"]
    assert (entry.kind, entry.device, entry.mode) == (Kind.CHARACTER_DEVICE, 0, 0o600)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_cannot_be_read_refuses_the_snapshot_and_is_named(unprivileged: Path, what: str) -> None:
    locked = unprivileged / "tree" / "locked"
    locked.parent.mkdir()
    locked.mkdir() if what == "folder" else locked.touch()
    locked.chmod(0)
    blobs = BlobStore(unprivileged / "blobs")
    with pytest.raises(CheckpointRefused, match="'locked' cannot be read"):
        take(locked.parent, blobs)


def test_times_beyond_what_a_manifest_can_hold_are_refused(folder: Path, blobs: BlobStore) -> None:
    beyond = 2**40
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:  # one of the file systems that keep such times
        (Path(name) / "file").touch()
        os.utime(Path(name) / "file", (beyond, beyond))
        assert (Path(name) / "file").stat().st_mtime == beyond
        with pytest.raises(CheckpointRefused, match="'file'"):
            take(Path(name), blobs)


# ---- trees that change meanwhile


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], object]) -> None:
    """Do `act` with the number of the attempt whenever a file has just been read."""
    read = content._read
    attempts = iter(range(1000))

    def reading(*arguments: Any) -> Any:
        found = read(*arguments)
        act(next(attempts))
        return found

    monkeypatch.setattr(content, "_read", reading)


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


CHANGES: dict[str, Callable[[Path], object]] = {
    "grows": append,
    "shrinks": lambda path: os.truncate(path, max(0, path.stat().st_size - 1)),
    "is touched": lambda path: os.utime(path, ns=(path.stat().st_mtime_ns + 1, path.stat().st_mtime_ns + 1)),
    "is rewritten": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_file_that_will_not_hold_still_is_torn_and_recorded_as_it_was_read(
    folder: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (folder / "moving").write_bytes(b"0123456789")
    meanwhile(monkeypatch, lambda attempt: CHANGES[how](folder / "moving"))
    taken = take(folder, blobs)
    entry = manifest.load(taken.digest, blobs)[b"moving"]
    assert (taken.torn, taken.files, taken.bytes) == (("moving",), 1, entry.size)
    assert len(blobs.get(entry.content)) == entry.size


def test_a_file_that_comes_to_rest_is_recorded_as_it_rests(
    folder: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "moving").write_bytes(b"0")
    meanwhile(monkeypatch, lambda attempt: append(folder / "moving") if attempt < 2 else None)
    taken = take(folder, blobs)
    assert (taken.torn, taken.files) == ((), 1)
    assert contents(taken, blobs) == {b"0moremore"}


def test_a_store_through_a_memory_map_while_a_file_is_read_is_noticed(
    folder: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is dirty already is changed by a further store without any sign of it in the file's times."""
    (folder / "mapped").write_bytes(bytes(100))
    with open(folder / "mapped", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = 1
        time.sleep(0.05)  # longer than the clock of the file system ticks
        attempts: list[int] = []

        def act(attempt: int) -> None:
            attempts.append(attempt)
            if not attempt:
                mapped[1] = 2

        meanwhile(monkeypatch, act)
        taken = take(folder, blobs)
    assert (taken.torn, attempts) == ((), [0, 1])
    assert contents(taken, blobs) == {b"\x01\x02" + bytes(98)}


def test_a_file_that_is_gone_by_the_time_it_is_read_again_is_not_there(
    folder: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (folder / name).write_text(name)
    meanwhile(monkeypatch, lambda attempt: (folder / "b").unlink(missing_ok=True))
    taken = take(folder, blobs)
    assert (taken.torn, contents(taken, blobs)) == ((), {b"a"})


def test_what_is_renamed_while_its_folder_is_looked_at_is_found_under_its_new_name(
    folder: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "m"):
        (folder / name).write_text(name)
    meanwhile(monkeypatch, lambda attempt: None if attempt else (folder / "m").rename(folder / "0"))
    taken = take(folder, blobs)
    assert (taken.torn, set(manifest.load(taken.digest, blobs))) == ((), {b"0", b"a", b"b"})


def test_names_that_come_and_go_without_end_are_torn(
    folder: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "ghost").touch()
    listdir = os.listdir

    def with_ghost(path: int) -> list[str]:
        return [*listdir(path), "gone"]

    monkeypatch.setattr(os, "listdir", with_ghost)
    taken = take(folder, blobs)
    assert (taken.torn, set(manifest.load(taken.digest, blobs))) == (("gone",), {b"ghost"})


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("stays", [True, False], ids=["stays", "comes and goes"])
def test_a_link_that_takes_a_place_meanwhile_is_not_followed(
    folder: Path, tmp_path: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, what: str, stays: bool
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    victim = folder / "victim"

    def put_original() -> None:
        victim.unlink(missing_ok=True)
        victim.mkdir() if what == "folder" else victim.touch()

    put_original()
    really = os.open

    def swapping(path: str | bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path != b"victim":
            return really(path, flags, mode, dir_fd=dir_fd)
        if not victim.is_symlink():
            victim.rmdir() if what == "folder" else victim.unlink()
        victim.unlink(missing_ok=True)
        victim.symlink_to(secret if what == "folder" else secret / "file")
        try:
            return really(path, flags, mode, dir_fd=dir_fd)
        finally:
            if not stays:
                put_original()

    monkeypatch.setattr(os, "open", swapping)
    taken = take(folder, blobs)
    assert b"secret" not in contents(taken, blobs)
    found = manifest.load(taken.digest, blobs)
    if stays:
        assert found[b"victim"].kind is Kind.LINK
    else:
        assert (found, taken.torn) == ({}, ("victim",))


def test_a_pipe_that_takes_the_place_of_a_file_delays_nobody(
    folder: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "victim").touch()
    really = os.open

    def swapping(path: str | bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == b"victim":
            (folder / "victim").unlink()
            os.mkfifo(folder / "victim")
        return really(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swapping)
    assert manifest.load(take(folder, blobs).digest, blobs)[b"victim"].kind is Kind.FIFO


def test_paths_are_named_so_that_people_and_json_can_hold_them() -> None:
    assert readable(b"a/\xff\n\xc3\xa4") == "a/\\xff\n\u00e4"


def test_few_descriptors_are_enough_for_the_deepest_tree(folder: Path, tmp_path: Path) -> None:
    deep(folder, MAX_DEPTH)
    code = (
        "import sys; from pathlib import Path; from sandkeep.events import BlobStore;"
        "from sandkeep.sandboxes import snapshot; import os;"
        "print(snapshot.take(os.open(sys.argv[1], os.O_RDONLY), BlobStore(Path(sys.argv[2]))).digest)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, folder, tmp_path / "blobs"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == take(folder, BlobStore(tmp_path / "blobs")).digest, done.stderr
