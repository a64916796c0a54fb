"""What commands write outside the workspace: kept with a checkpoint if that is asked for, and gone with it."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest

from sandkeep.projections import TaskState
from sandkeep.sandboxes import Keep, Task
from sandkeep.sandboxes.errors import CheckpointNeeded, CheckpointRefused, ImageNotFound, PolicyDenied
from sandkeep.sandboxes.system import KEPT

from .support import Cli, shell, stopped_at

pytestmark = pytest.mark.engine


def kept(client: docker.DockerClient, keep: Keep) -> dict[str, str]:
    """The images that are kept for the checkpoints of a keep, by the checkpoint's id."""
    mine = f"{KEPT}:{keep.id}-"
    tags = {tag: each["Id"] for each in client.api.images(name=KEPT) for tag in each["RepoTags"]}
    return {tag.removeprefix(mine): image for tag, image in tags.items() if tag.startswith(mine)}


@pytest.fixture
def granting(keep: Keep, client: docker.DockerClient) -> Iterator[Keep]:
    """A keep whose tasks may write to their sandboxes' roots. Whatever it has the engine keep is removed."""
    with (keep.path / "keep.toml").open("a") as file:
        file.write("[sandboxes]\nwritable_root = true\n")
    yield keep
    for found in keep.engine.containers(keep.id):
        keep.engine.remove(found.container)
    for name in kept(client, keep):
        client.api.remove_image(f"{KEPT}:{keep.id}-{name}")


@pytest.fixture
def writable(granting: Keep) -> Task:
    """A task that has written outside its workspace."""
    task = granting.create_task("a test", writable_root=True)
    shell(task, "echo one >/var/tmp/system; echo one >file")
    return task


def test_roots_are_read_only_unless_that_is_granted_and_asked_for(keep: Keep) -> None:
    with pytest.raises(PolicyDenied, match="writable_root = true"):
        keep.create_task("a test", writable_root=True)
    assert keep.tasks(*TaskState) == []
    task = keep.create_task("a test")
    assert task.execute(["touch", "/var/tmp/system"]).exit_code != 0
    with pytest.raises(CheckpointRefused, match="a read-only root"):
        task.checkpoint(with_system=True)
    assert task.checkpoints() == []


def test_a_checkpoint_keeps_what_lies_outside_the_workspace_if_asked(
    granting: Keep, writable: Task, client: docker.DockerClient
) -> None:
    plain = writable.checkpoint("without")
    first = writable.checkpoint("with", with_system=True)
    assert (plain.image, kept(client, granting)) == ("", {first.id: first.image})
    shell(writable, "echo two >/var/tmp/system; echo two >file; echo new >/var/tmp/new")
    done = writable.restore_checkpoint(first.id)
    assert writable.state.container is None
    assert shell(writable, "cat /var/tmp/system file; ls /var/tmp") == "one\none\nsystem\n"
    # What it was before can be had back, outside the workspace too.
    writable.restore_checkpoint(done.undo)
    assert shell(writable, "cat /var/tmp/system file; ls /var/tmp") == "two\ntwo\nnew\nsystem\n"
    # One that keeps nothing of it leads back to the task's image.
    writable.restore_checkpoint(plain.id)
    assert shell(writable, "cat file; ls /var/tmp") == "one\n"
    writable.restore_checkpoint(first.id, files_only=True)
    assert shell(writable, "ls /var/tmp") == ""
    assert granting.verify().ok
    assert granting.replay().same


def test_a_fork_starts_from_what_was_kept(granting: Keep, writable: Task) -> None:
    first = writable.checkpoint("with", with_system=True)
    shell(writable, "echo two >/var/tmp/system")
    fork = granting.fork_task(writable.id, first.id)
    assert shell(fork, "cat /var/tmp/system; echo fork >/var/tmp/system; cat /var/tmp/system") == "one\nfork\n"
    assert shell(writable, "cat /var/tmp/system") == "two\n"
    # Without a sandbox that has written anything, it is kept as it would be begun from.
    other = granting.fork_task(writable.id, first.id)
    assert other.checkpoint(with_system=True).image == first.image


def test_what_is_kept_goes_with_its_checkpoint(granting: Keep, writable: Task, client: docker.DockerClient) -> None:
    first = writable.checkpoint("with", with_system=True)
    second = writable.checkpoint("with", with_system=True)
    third = writable.restore_checkpoint(second.id).undo
    assert set(kept(client, granting)) == {first.id, second.id, third}
    assert granting.reconcile(again=True) == []
    with pytest.raises(CheckpointNeeded, match="the task's sandbox starts from it"):
        granting.checkpoints(writable.id).expire(second.id)
    granting.checkpoints(writable.id).expire(first.id)
    assert any(first.id in line for line in granting.reconcile(again=True))
    assert set(kept(client, granting)) == {second.id, third}
    assert shell(writable, "cat /var/tmp/system") == "one\n"


def test_an_image_that_the_engine_lost_is_named(granting: Keep, writable: Task, client: docker.DockerClient) -> None:
    first = writable.checkpoint("with", with_system=True)
    plain = writable.checkpoint("without")
    writable.restore_checkpoint(first.id)
    client.api.remove_image(first.image, force=True)
    with pytest.raises(ImageNotFound, match="has lost the image"):
        writable.execute(["true"])
    writable.restore_checkpoint(plain.id)
    assert shell(writable, "cat file") == "one\n"


@pytest.mark.parametrize("step", ["after:engine.commit", "before:engine.remove"])
def test_a_process_that_dies_meanwhile_leaves_nothing(
    granting: Keep, writable: Task, client: docker.DockerClient, step: str
) -> None:
    first = writable.checkpoint("with", with_system=True)
    with stopped_at(step, "restore", granting.path, writable.id, first.id) as process:
        granting.reconcile(again=True)
        assert len(kept(client, granting)) == 2  # it is being made, or is named by now
        process.kill()
        process.wait()
    granting.reconcile(again=True)
    known = {each.id for each in writable.checkpoints() if each.image}
    assert set(kept(client, granting)) == known
    assert writable.state.pending == ()
    writable.restore_checkpoint(first.id)
    assert shell(writable, "cat /var/tmp/system file") == "one\none\n"


def test_the_verbs(granting: Keep, cli: Cli) -> None:
    granting.close()
    task = cli("create-task", "a test", "--writable-root").stdout.decode().strip()
    assert cli("execute", task, "--", "touch", "/var/tmp/system").status == 0
    taken = cli("checkpoint", task, "--with-system", "--json").json
    assert taken["image"].startswith("sha256:")
    assert b"with its system" in cli("list-checkpoints", task).stdout
    assert cli("restore-checkpoint", task, taken["id"]).status == 0
    shown = cli("show-task", task, "--json").json
    assert (shown["writable_root"], shown["system"]) == (True, taken["image"])
    assert f"can be written to, from {taken['image'][:19]}".encode() in cli("show-task", task).stdout
