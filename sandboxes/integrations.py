"""Which agents are used here, and whether their configuration starts our server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sandkeep.sandboxes import clients, installation
from sandkeep.sandboxes.clients import Client
from sandkeep.sandboxes.errors import ConfigRefused

Said = tuple[str, str, str, bool]
"""An area, what is, what to do about it, and whether that should be done; see `documents_keep.Finding`."""

_AREA = "agents"


def describe(project: Path) -> Iterator[Said]:
    """What there is to say of each agent that is used in a project, or by its user."""
    for client in clients.CLIENTS:
        told = [each for scope in (project, None) for each in _told(client, scope)]
        yield from told
        if not told and clients.traces(client, project):
            yield _AREA, f"{client.title} does not know of us", f"run 'sandkeep install {client.name}'", False


def _told(client: Client, project: Path | None) -> Iterator[Said]:
    """What one configuration of the client says of us; nothing if it does not know of us."""
    again = f"sandkeep install {client.name}{' --user' * (project is None)}"
    try:
        place, found = installation.standing(client, project)
    except ConfigRefused as error:
        yield _AREA, str(error), f"then run '{again}'", False
        return
    if found is None:
        return
    if not clients.is_ours(found):
        yield (
            _AREA,
            f"{place} has a server {clients.SERVER!r} that is not ours",
            f"rename it, then run '{again}'",
            False,
        )
        return
    program = clients.argv(found)[0]
    there = shutil.which(program, path=os.environ.get("PATH")) is not None
    if there:
        yield _AREA, f"{client.title} starts our server, as {place} says", "", False
    else:
        yield _AREA, f"{place} starts {program}, which is not there", f"run '{again}'", True
