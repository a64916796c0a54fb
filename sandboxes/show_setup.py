"""What the command line shows people of setting things up."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from sandkeep.sandboxes import documents_setup, render

_SAID = {
    "added": "added",
    "changed": "changed",
    "removed": "removed",
    "unchanged": "is as it should be",
    "foreign": "is not ours, and was left alone",
}
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def changes(found: list[documents_setup.Change], asked: Mapping[str, object]) -> None:
    """What became of each file; of a dry run, what would."""
    dry = bool(asked["dry_run"])
    for each in found:
        if dry and each.diff:
            lines = (Text(render.plain(line).plain, _COLOURS.get(line[0], "")) for line in each.diff.splitlines())
            render.print_lines(lines)
        elif each.action in ("added", "removed") and each.path.endswith(".md"):
            continue  # counted below
        else:
            kept = f"; what it was is in {each.kept}" if each.kept else ""
            print(render.plain(f"{each.path} {_SAID[each.action]}{kept}"))
    commands = [each for each in found if each.path.endswith(".md") and each.action in ("added", "removed")]
    if commands and not dry:
        print(f"{len(commands)} slash commands {commands[0].action}")
    if not found:
        print("nothing of ours is there")
