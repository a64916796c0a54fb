"""What the verbs that set things up do: calls of the library, and documents of what it gave. They hold no logic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sandkeep.sandboxes import completion as shells
from sandkeep.sandboxes import documents_setup, installation
from sandkeep.sandboxes.door import Door
from sandkeep.sandboxes.installation import Change
from sandkeep.sandboxes.vocabulary import VERBS

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep


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
    if not user and (lacking := installation.lacks_keep(project, for_keep)) is not None:
        door.note(f"there is no keep in {lacking} yet; make one with 'sandkeep init --keep {lacking}'")
    return list(map(_change, done))


def uninstall(
    door: Door, *, clients: Sequence[str] = (), project: str = ".", user: bool = False, dry_run: bool = False
) -> list[documents_setup.Change]:
    """Take that back; see `installation.uninstall`."""
    done = installation.uninstall(clients, project=None if user else project, dry_run=dry_run)
    return list(map(_change, done))


def completion(door: Door, *, shell: str, words: Sequence[str] = ()) -> list[str]:
    """A shell's script, or what completes words; see `completion`."""
    if not words:
        return shells.script(shell)

    def opened(folder: str | None) -> Keep:
        if folder is not None:
            door.path = Path(folder)
        return door.keep

    return shells.lines(shell, shells.offers(words, VERBS, opened))


def _change(found: Change) -> documents_setup.Change:
    return documents_setup.Change(found.client, found.path, found.action, found.diff, found.kept or None)
