"""A container's own file system: what commands write outside the workspace, kept with a checkpoint if that is asked.

A sandbox's root is read-only unless its task was created with one that may be written to, which `keep.toml` has to
grant: no limit holds for what lies there, and it lies on the engine's disk. Commands are the workspace's owner there as
well, without capabilities, so they change what the image lets that user change.

`kept` has the engine commit the container to an image, while it stands still. The checkpoint names it by its id, which
is the digest of what it is made of, and so does the task once it goes back to the checkpoint: its next sandbox starts
from that. The tag `sandkeep/kept:<keep>-<checkpoint>` keeps the engine from pruning the image. What is tagged so and
belongs to no checkpoint that can be restored is a leaving of a crash, or of one that has expired; `sweep` removes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import docker.errors

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import checkpoints
from sandkeep.projections.registry import Task
from sandkeep.sandboxes import image, intent, settings
from sandkeep.sandboxes.container import INTENT
from sandkeep.sandboxes.errors import CheckpointRefused, ImageNotFound, PolicyDenied
from sandkeep.sandboxes.recipe import REPOSITORY

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

KEPT = f"{REPOSITORY}kept"


def granted(keep: Keep, asked: bool) -> list[Event]:
    """What lets a new task write to its sandbox's root, if that is `asked` for. Raises `PolicyDenied`."""
    if asked and not settings.load(keep.path).sandboxes.writable_root:
        raise PolicyDenied(
            "no task of this keep may write to its sandbox's root; its owner grants that with 'writable_root = true' in"
            " [sandboxes] of keep.toml"
        )
    return [ev.RootGranted()] if asked else []


def writable(keep: Keep, task: Task) -> bool:
    """Whether the root of the task's next sandbox may be written to: it was granted, and still is."""
    return task.writable and settings.load(keep.path).sandboxes.writable_root


def resolve(keep: Keep, task: Task) -> str:
    """The id of the image of the checkpoint that the task went back to, or was forked from; empty if there is none.

    Raises `ImageNotFound` if the engine has it no more.
    """
    if not task.system:
        return ""
    with keep.engine.connected() as client:
        try:
            return str(image.inspect(client, task.system)["Id"])
        except docker.errors.ImageNotFound as error:
            raise ImageNotFound(
                f"the engine has lost the image {task.system[:19]} that task {task.id} went back to; restore a"
                f" checkpoint that has none, or that has another ('sandkeep list-checkpoints {task.id}')"
            ) from error


@contextlib.contextmanager
def kept(
    keep: Keep, task: Task, checkpoint: str, still: contextlib.AbstractContextManager[bool] | None
) -> Iterator[str]:
    """The id of an image of what the task's container is now, for a checkpoint that is recorded within the block; empty
    if nothing was ever written there. Within the block the container stands `still`, or does already.

    Raises `CheckpointRefused` if the root is read-only.
    """
    if not task.writable:
        raise CheckpointRefused(
            f"the sandbox of task {task.id} has a read-only root, so there is nothing to keep but the workspace; leave"
            " that out, or create the task with a root that may be written to"
        )
    container = task.container
    if container is None or keep.engine.status(container) is None:
        yield task.system  # what the next sandbox would start from
        return
    with still or contextlib.nullcontext(True), intent.held(keep.intents) as made:
        yield keep.engine.commit(container, KEPT, f"{keep.id}-{checkpoint}", {INTENT: made})


def sweep(keep: Keep) -> list[str]:
    """Remove the images of checkpoints that are no more, and tell which, a line each. The steward does this."""
    mine = f"{KEPT}:{keep.id}-"
    with keep.engine.connected() as client:
        found = {
            tag: (str(each["Id"]), (each["Labels"] or {}).get(INTENT, ""))
            for each in client.api.images(name=KEPT)
            for tag in image.tags(each)
            if tag.startswith(mine)
        }
    # Those that are being made are known to be so before it is asked which checkpoints there are.
    making = {tag for tag, (_, made) in found.items() if not intent.abandoned(keep.intents, made or "-")}
    wanted = _wanted(keep) if found else set()
    done = []
    for tag, (image_id, _) in found.items():
        if tag in making or image_id in wanted:
            continue
        with keep.engine.connected() as client:
            try:
                client.api.remove_image(tag)
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):  # a sandbox runs on it still
                    raise
                continue
        done.append(f"removed the image {tag}, which no checkpoint needs")
    return done


def _wanted(keep: Keep) -> set[str]:
    """The ids of the images that a checkpoint names, or a task starts from."""
    with keep.projections.reading() as state:
        found = {each.image for task in checkpoints.having(state) for each in checkpoints.checkpoints(state, task)}
    return found | {task.system for task in keep.tasks()}
