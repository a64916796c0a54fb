"""A Python for images that have none: the base image's, with its libraries and loader, mounted beside the agent.

So the agent is the same in every image, one of a single static program too. It is copied out of the base image once a
keep and version of that image, by a container of it that can reach nothing else, into `run/python-<version>`. While the
engine has no base image there is none to lend: to make one takes a minute.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import docker.types

from sandkeep.events import SandkeepError
from sandkeep.sandboxes import engine_use, image, intent, workspace
from sandkeep.sandboxes.container import INTENT, KEEP, TASK, called
from sandkeep.sandboxes.errors import EngineFailed
from sandkeep.sandboxes.guest import lend
from sandkeep.sandboxes.recipe import base_recipe

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_TARGET, _UNFINISHED = "/target", ".python"
_PATIENCE_SECONDS = 60
_logger = logging.getLogger(__name__)


def borrowed(keep: Keep) -> Path | None:
    """The folder that holds it, copied if it is not there yet; None if there is none to be had, which is logged."""
    try:
        with keep.engine.connected() as client:
            base = image.find(client, base_recipe())
        if base is None:
            _logger.warning("there is no base image whose Python could be lent; 'sandkeep build-image base' makes it")
            return None
        folder = keep.path / "run" / f"python-{base.id.removeprefix('sha256:')[:16]}"
        if not folder.exists():
            with intent.exclusive(folder.with_name("python.lock")):
                if not folder.exists():
                    _copy(keep, base.id, folder)
    except (SandkeepError, OSError) as error:
        _logger.warning("the base image's Python could not be copied: %s", error)
        return None
    return folder


def _copy(keep: Keep, base: str, folder: Path) -> None:
    made = folder.with_name(_UNFINISHED)
    workspace.remove(made)
    made.mkdir()
    uid, gid = workspace.owner()
    if os.getuid() == 0:
        os.chown(made, uid, gid)
    with intent.held(keep.intents) as held, keep.engine.connected() as client:
        labels = {KEEP: keep.id, TASK: "python", INTENT: held}
        container = engine_use.create(
            client,
            keep.engine.facts,
            "",
            base,
            command=["-I", "-c", Path(lend.__file__).read_text(), _TARGET],
            entrypoint=["python3"],
            user=f"{uid}:{gid}",
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            mem_limit="256m",
            pids_limit=64,
            mounts=[docker.types.Mount(_TARGET, str(made), type="bind")],
            labels=labels,
            name=called(labels),
            use_config_proxy=False,
        )
        try:
            container.start()
            status = container.wait(timeout=_PATIENCE_SECONDS)["StatusCode"]
            told = container.logs(stdout=False, tail=3).decode(errors="replace") if status else ""
        finally:
            container.remove(force=True, v=True)
    if status:
        raise EngineFailed(f"the base image's Python ended with {status}: {told[-500:]}; make the base image anew")
    # Whoever the sandbox's users are, they have to read it; the folders above it are closed to others.
    made.chmod(0o755)
    made.rename(folder)
