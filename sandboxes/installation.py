"""Telling agents where our server is, and taking that back.

A configuration is edited in place: our entry is put in or cut out, and every other byte stays (see `jsonc` and
`toml_table`). What was there before we came is kept beside it. All that is to change is worked out before anything is
written; a file that cannot be changed safely refuses all of it.

Uninstalled, a file is byte for byte what it was if nothing but our entry was changed since: then what was kept is put
back, and a file that was not there before is removed.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from sandkeep.events import BadInput
from sandkeep.sandboxes import clients, config_file, jsonc, slash, toml_table
from sandkeep.sandboxes.clients import Client, Entry
from sandkeep.sandboxes.config_file import Content, Place
from sandkeep.sandboxes.errors import ClientNotFound, ConfigRefused

KEPT = ".before-sandkeep"
"""What the copy of a file is called, behind the file's own name."""

_SCHEMA = "https://opencode.ai/config.json"


class Change(msgspec.Struct, frozen=True):
    """A file that is to be `added`, `changed` or `removed`, or stays as it is: `unchanged`, or `foreign` if it is not
    ours to change. `diff` is a unified one."""

    client: str
    path: str
    action: str
    diff: str = ""
    kept: str = ""


class _Step(msgspec.Struct, frozen=True):
    client: Client
    place: Place
    was: Content | None
    data: bytes | None
    foreign: bool = False
    keeps: bool = False
    drops: Content | None = None


def chosen(names: Iterable[str], project: Path) -> list[Client]:
    """The clients with these names, or those that are used here. Raises `BadInput` and `ClientNotFound`."""
    wanted = list(dict.fromkeys(names))
    known = {client.name: client for client in clients.CLIENTS}
    if unknown := [name for name in wanted if name not in known]:
        raise BadInput(f"{unknown[0][:40]!r} is no agent that we know; name {', '.join(known)}")
    if wanted:
        return [known[name] for name in wanted]
    if found := [client for client in clients.CLIENTS if clients.traces(client, project)]:
        return found
    looked = "; ".join(
        f"for {client.title}: {', '.join((*client.project_traces, *client.user_traces))} and the program"
        f" {client.program}"
        for client in clients.CLIENTS
    )
    raise ClientNotFound(f"no agent is used in {project}, as far as can be seen; name one. Looked {looked}")


def install(
    names: Iterable[str] = (),
    *,
    project: str | os.PathLike[str] | None = ".",
    keep: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
) -> list[Change]:
    """Put our server and the slash commands into the configuration that these clients have in a `project`, or of the
    user if that is None; without names, of all clients that are used here. What is there already stays.

    `keep` is the keep that the server is to work on, `.sandkeep` in the client's folder if left out. Raises `BadInput`,
    `ClientNotFound` and `ConfigRefused`; then nothing has changed, unless another program wrote at the same moment.
    """
    root = None if project is None else _project(project)
    steps: list[_Step] = []
    for client in chosen(names, root or Path.cwd()):
        entry = clients.entry(client, keep=None if keep is None else Path(keep).absolute(), project=root)
        steps.append(_put(client, _file(client, root), entry))
        steps += _commands(client, root, wanted=True)
    return _carry_out(steps, dry_run=dry_run)


def uninstall(
    names: Iterable[str] = (), *, project: str | os.PathLike[str] | None = ".", dry_run: bool = False
) -> list[Change]:
    """Take out what `install` put in. Without names, of all clients. Raises as `install` does."""
    root = None if project is None else _project(project)
    wanted = list(names)
    steps: list[_Step] = []
    for client in chosen(wanted, root or Path.cwd()) if wanted else clients.CLIENTS:
        for name in client.user_files if root is None else client.project_files:
            steps += _cut(client, _place(name, root))
        steps += _commands(client, root, wanted=False)
    return _carry_out(steps, dry_run=dry_run)


def lacks_keep(project: str | os.PathLike[str], keep: str | os.PathLike[str] | None) -> Path | None:
    """Where the server of a project will look for a keep in vain; None if there is one."""
    path = Path(project).absolute() / ".sandkeep" if keep is None else Path(keep).absolute()
    return None if (path / "keep.toml").exists() else path


def standing(client: Client, project: Path | None) -> tuple[Place, object]:
    """The client's configuration, and the entry that has our name in it; None if there is none. Raises
    `ConfigRefused`."""
    place = _file(client, project)
    was = config_file.read(place)
    return place, None if was is None else _entry(client, place, _text(place, was))


def _project(project: str | os.PathLike[str]) -> Path:
    found = Path(project).resolve()
    if not found.is_dir():
        raise BadInput(f"{found} is no folder; give the project's")
    return found


def _file(client: Client, project: Path | None) -> Place:
    names = client.user_files if project is None else client.project_files
    places = [_place(name, project) for name in names]
    return next((place for place in places if os.path.lexists(place.root / place.path)), places[-1])


def _place(name: str, project: Path | None) -> Place:
    if project is not None:
        return Place(project, PurePosixPath(name))
    # A user's own links are followed: many keep their configuration elsewhere and link to it.
    path = clients.home(name).resolve()
    root = path.parent
    while not root.is_dir():
        root = root.parent
    return Place(root, PurePosixPath(path.relative_to(root)))


def _text(place: Place, was: Content) -> str:
    try:
        return was.data.decode()
    except UnicodeDecodeError as error:
        raise ConfigRefused(f"{place} is not UTF-8 (byte {error.start}); correct it, and run it again") from error


def _entry(client: Client, place: Place, text: str) -> object:
    """The entry with our name, or None. Raises `ConfigRefused` if the text does not parse."""
    try:
        found: object = toml_table.parse(text) if client.is_toml else jsonc.parse(text) if text.strip() else {}
    except (toml_table.NotToml, jsonc.NotJson) as error:
        raise _unreadable(place, error) from error
    for name in client.path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _unreadable(place: Place, error: Exception) -> ConfigRefused:
    return ConfigRefused(f"{place} does not parse: {error}; correct it, and run it again")


def _put(client: Client, place: Place, entry: Entry) -> _Step:
    was = config_file.read(place)
    text = "" if was is None else _text(place, was)
    found = _entry(client, place, text)
    if found is not None and not clients.is_ours(found):
        raise ConfigRefused(
            f"{place} has a server {clients.SERVER!r} that is not ours; rename it there, and run it again"
        )
    return _Step(client, place, was, _added(client, place, text, entry).encode(), keeps=was is not None and not found)


def _added(client: Client, place: Place, text: str, entry: Entry) -> str:
    try:
        if client.is_toml:
            settings = {name: value for name, value in entry.items() if not isinstance(value, bool)}
            return toml_table.put(text, client.path, settings, clients.TUNED)
        text = text if text.strip() else _skeleton(client)
        known = _entry(client, place, text)
        if known is None:
            return jsonc.put(text, client.path, _json(entry))
        for name, value in entry.items():
            if name not in clients.TUNED:
                text = jsonc.put(text, (*client.path, name), _json(value))
        return text
    except (toml_table.NotToml, jsonc.NotJson) as error:
        raise _unreadable(place, error) from error


def _json(value: object) -> jsonc.Value:
    return msgspec.to_builtins(value)  # type: ignore[no-any-return]


def _skeleton(client: Client) -> str:
    """A configuration that says nothing."""
    return f'{{\n  "$schema": "{_SCHEMA}"\n}}\n' if client.name == "opencode" else "{}\n"


def _cut(client: Client, place: Place) -> list[_Step]:
    was = config_file.read(place)
    if was is None:
        return []
    text = _text(place, was)
    found = _entry(client, place, text)
    if found is None:
        return []
    if not clients.is_ours(found):
        return [_Step(client, place, was, was.data, foreign=True)]
    rest = _without(client, place, text)
    before = config_file.read(place.beside(KEPT))
    if before is not None:
        if _same_but_for(client, place, before, rest):
            return [_Step(client, place, was, before.data, drops=before)]
    elif not rest.strip() or (not client.is_toml and jsonc.parse(rest) == jsonc.parse(_skeleton(client))):
        return [_Step(client, place, was, None)]
    return [_Step(client, place, was, rest.encode())]


def _without(client: Client, place: Place, text: str) -> str:
    try:
        return toml_table.cut(text, client.path) if client.is_toml else jsonc.cut(text, client.path)
    except (toml_table.NotToml, jsonc.NotJson) as error:
        raise ConfigRefused(f"{place} cannot be cut: {error}") from error


def _same_but_for(client: Client, place: Place, before: Content, rest: str) -> bool:
    """Whether the copy differs from what stands there by our entry only, whatever that says."""
    try:
        added = _added(client, place, _text(place, before), {"command": clients.SERVER})
        return _without(client, place, added) == rest
    except ConfigRefused:
        return False


def _commands(client: Client, project: Path | None, *, wanted: bool) -> list[_Step]:
    folder = client.user_commands if project is None else client.project_commands
    if not folder:
        return []
    steps = []
    for name, text in slash.commands(client).items():
        place = _place(f"{folder}/{name}.md", project)
        was = config_file.read(place)
        foreign = was is not None and not slash.is_ours(was.data)
        data = was.data if was is not None and foreign else text.encode() if wanted else None
        if was is not None or wanted:
            steps.append(_Step(client, place, was, data, foreign))
    return steps


def _carry_out(steps: Sequence[_Step], *, dry_run: bool) -> list[Change]:
    changes = [_change(step) for step in steps]
    for step in [] if dry_run else steps:
        if step.data == (None if step.was is None else step.was.data):
            continue
        if step.keeps and step.was is not None:
            copy = step.place.beside(KEPT)
            config_file.replace(copy, step.was.data, config_file.read(copy), like=step.was)
        if step.data is not None:
            config_file.replace(step.place, step.data, step.was)
        elif step.was is not None:
            config_file.remove(step.place, step.was)
        if step.drops is not None:
            config_file.remove(step.place.beside(KEPT), step.drops)
    return changes


def _change(step: _Step) -> Change:
    old = b"" if step.was is None else step.was.data
    new = step.data or b""
    path = str(step.place)
    if step.foreign:
        action = "foreign"
    elif step.data is None:
        action = "removed"
    else:
        action = "added" if step.was is None else "unchanged" if old == new else "changed"
    before, after = (each.decode(errors="replace").splitlines(keepends=True) for each in (old, new))
    lines = difflib.unified_diff(before, after, path, path)
    ended = (line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
    kept = str(step.place.beside(KEPT)) if step.keeps and action == "changed" else ""
    return Change(step.client.name, path, action, "".join(ended), kept)
