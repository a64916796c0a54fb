"""A task's files compared with its checkpoints, and set back path by path, through the API and the command line."""

from __future__ import annotations

import os

import pytest
from blake3 import blake3

from sandkeep.events import BlobMissing
from sandkeep.sandboxes import Keep, Task, place, restore
from sandkeep.sandboxes.errors import CheckpointNotFound, PathNotFound, RestoreRefused

from ..packed import lose
from .support import Cli, listing, types

pytestmark = pytest.mark.engine


@pytest.fixture
def idle(keep: Keep) -> Task:
    """A task without a sandbox, with a few files and a checkpoint of them."""
    task = keep.create_task("a test")
    (task.workspace / "src").mkdir()
    for name in ("a", "src/b"):
        (task.workspace / name).write_text(f"{name}\n")
    task.checkpoint("first")
    for name in ("a", "src/b"):
        (task.workspace / name).write_text("changed\n")
    return task


def test_chosen_paths_are_set_back_and_that_can_be_undone(idle: Task) -> None:
    idle.tag(add=["tagged"])
    (first,) = idle.checkpoints()
    before = listing(idle.workspace)
    done = idle.restore_checkpoint(first.id, paths=["src"])
    assert (idle.workspace / "src" / "b").read_text() == "src/b\n"
    assert (idle.workspace / "a").read_text() == "changed\n"
    assert idle.state.tags == ("tagged",)
    requested = next(each.event for each in idle.history() if each.type == "RestoreRequested")
    assert getattr(requested, "paths", None) == ("src",)
    idle.restore_checkpoint(done.undo)
    assert listing(idle.workspace) == before


def test_a_dry_run_changes_nothing_and_is_no_event(idle: Task) -> None:
    (first,) = idle.checkpoints()
    before, history = listing(idle.workspace), types(idle.history())
    told = idle.restore_checkpoint(first.id, dry_run=True)
    assert [(each.path, each.action) for each in told.planned] == [("a", "replace"), ("src/b", "replace")]
    assert (told.undo, told.stripped) == ("", ())
    assert (listing(idle.workspace), types(idle.history())) == (before, history)
    assert idle.restore_checkpoint(first.id).digest == told.digest


def test_a_path_that_is_nowhere_is_refused_before_anything_is_touched(idle: Task) -> None:
    (first,) = idle.checkpoints()
    before = listing(idle.workspace)
    with pytest.raises(PathNotFound):
        idle.restore_checkpoint(first.id, paths=["nowhere"])
    assert listing(idle.workspace) == before
    assert "RestoreRequested" not in types(idle.history())


def test_what_gives_privileges_is_left_out_and_named_unless_it_is_asked_for(idle: Task) -> None:
    tool, device = idle.workspace / "tool", idle.workspace / "device"
    tool.write_text("tool")
    tool.chmod(0o4755)
    number = os.makedev(1, 3) if os.getuid() == 0 else os.makedev(0, 0)  # the one that anybody may make
    os.mknod(device, 0o20666, number)
    taken = idle.checkpoint()
    tool.unlink()
    device.unlink()
    assert idle.restore_checkpoint(taken.id).stripped == ("device", "tool")
    assert (tool.stat().st_mode, device.exists()) == (0o100755, False)
    assert idle.restore_checkpoint(taken.id, privileges=True).stripped == ()
    assert (tool.stat().st_mode, device.stat().st_rdev) == (0o104755, number)


def test_content_that_is_gone_is_found_before_anything_is_touched(keep: Keep, idle: Task) -> None:
    (first,) = idle.checkpoints()
    before = listing(idle.workspace)
    found = next(each for each in idle.diff(first.id) if each.path == "a")
    assert found.lines == ("@@ -1 +1 @@", "-a", "+changed")
    digest = blake3(b"a\n").hexdigest()
    lose(keep.path / "blobs", digest)
    keep.blobs.forget()
    with pytest.raises(BlobMissing, match=digest):
        idle.restore_checkpoint(first.id)
    assert listing(idle.workspace) == before
    assert types(idle.history())[-1] == "RestoreFailed"


def test_a_full_disk_beside_the_workspace_leaves_it_untouched(idle: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = idle.checkpoints()
    before = listing(idle.workspace)

    def full(*arguments: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place, "_write_at", full)
        with pytest.raises(RestoreRefused, match=r"nothing was changed.*No space left"):
            idle.restore_checkpoint(first.id)
    assert listing(idle.workspace) == before
    assert not (idle.workspace.parent / restore.STAGE).exists()


def test_checkpoints_and_the_workspace_are_compared(idle: Task) -> None:
    with pytest.raises(CheckpointNotFound, match="no checkpoints"):
        idle.diff("0" * 12)
    (first,) = idle.checkpoints()
    second = idle.checkpoint()
    (idle.workspace / "new").touch()
    history = types(idle.history())
    assert [each.path for each in idle.diff()] == ["new"]
    assert [each.path for each in idle.diff(first.id)] == ["a", "new", "src/b"]
    assert [each.path for each in idle.diff(first.id, second.id, ["/workspace/src"])] == ["src/b"]
    assert [each.lines for each in idle.diff(second.id, first.id, text=False)] == [(), ()]
    assert types(idle.history()) == history


def test_the_command_line_compares_and_sets_back(keep: Keep, idle: Task, cli: Cli) -> None:
    (first,) = idle.checkpoints()
    keep.close()
    (idle.workspace / "\x1b[31m").write_text("\x1b]0;title\x07\n")
    answer = cli("diff", idle.id)
    assert answer.status == 0, answer.stderr
    shown = answer.stdout.decode()
    assert shown.splitlines() == [
        *("+ \\x1b[31m  (11B file, +1 -0)", "@@ -0,0 +1 @@", "+\\x1b]0;title\\x07"),
        *("~ a  (2B became 8B, +1 -1)", "@@ -1 +1 @@", "-a", "+changed"),
        *("~ src/b  (6B became 8B, +1 -1)", "@@ -1 +1 @@", "-src/b", "+changed"),
    ]
    assert cli("diff", idle.id, "--stat", "--path", "a").stdout == b"~ a  (2B became 8B, +1 -1)\n"
    assert cli("diff", idle.id, first.id, first.id, "--json").json == []
    (told,) = cli("diff", idle.id, "--path", "src", "--json").json
    assert (told["path"], told["change"], told["added"], told["lines"][0]) == ("src/b", "modified", 1, "@@ -1 +1 @@")
    dry = cli("restore-checkpoint", idle.id, first.id[:6], "a", "--dry-run")
    assert dry.stdout == b"replace file    a\n"
    document = cli("restore-checkpoint", idle.id, first.id, "--dry-run", "--json").json
    assert document["planned"][0] == {"path": "\x1b[31m", "action": "delete", "kind": "file"}
    assert b"restored" in cli("restore-checkpoint", idle.id, first.id, "a").stdout
    assert (idle.workspace / "a").read_text() == "a\n"
    assert (idle.workspace / "src" / "b").read_text() == "changed\n"
    cli("restore-checkpoint", idle.id, first.id, "nowhere").refused("path-not-found", 2)
