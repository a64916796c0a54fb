"""What the verbs that set things up do: calls of the library, and documents of what it gave. They hold no logic."""

from __future__ import annotations

from collections.abc import Sequence

from sandkeep.sandboxes import documents_setup, installation
from sandkeep.sandboxes.door import Door
from sandkeep.sandboxes.installation import Change


def install(
    door: Door,
    *,
    clients: Sequence[str] = (),
    project: str = ".",
    user: bool = False,
    for_keep: str | None = None,
    dry_run: bool = False,
) -> list[documents_setup.Change]:
    """Tell agents where our server is; see `installation.install`."""
    done = installation.install(clients, project=None if user else project, keep=for_keep, dry_run=dry_run)
    return list(map(_change, done))


def uninstall(
    door: Door, *, clients: Sequence[str] = (), project: str = ".", user: bool = False, dry_run: bool = False
) -> list[documents_setup.Change]:
    """Take that back; see `installation.uninstall`."""
    done = installation.uninstall(clients, project=None if user else project, dry_run=dry_run)
    return list(map(_change, done))


def _change(found: Change) -> documents_setup.Change:
    return documents_setup.Change(found.client, found.path, found.action, found.diff, found.kept or None)
