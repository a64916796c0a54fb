"""Named caches of a keep, which tasks share: what a `keep.toml` declares, what a task may have of it, and how its
sandbox sees it.

    [caches]
    pip = { mode = "read-write", tasks = "all" }    # every task has it, and may write to it
    npm = { size = "2GiB" }                         # read-only, for the tasks that ask for it
    models = { variable = "HF_HOME" }

There is none that is not declared. One is the folder `caches/<name>` of the keep; a sandbox sees it at
`/caches/<name>`, and the variable that its tool looks for says so: `PIP_CACHE_DIR`, the one that is declared, or
`SANDKEEP_CACHE_<NAME>`. Whoever may write to a cache decides what all others who see it will run: see docs/guides.

What a task may have is decided when it is created, and recorded. The settings count again whenever a sandbox is
started: a cache that is declared no more is not seen, and one that is read-only by then is not written to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sandkeep.events import BadInput, late
from sandkeep.events.catalogue import CacheChoice
from sandkeep.sandboxes import quantity
from sandkeep.sandboxes.errors import PolicyDenied
from sandkeep.sandboxes.fields import Fields, read, table_of

if TYPE_CHECKING:
    from docker import types
else:
    globals().update(late.bound("docker", "types"))

MOUNT = "/caches"
"""Where a sandbox sees its caches."""

READ, WRITE = "read-only", "read-write"

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_KNOWN = {"pip": "PIP_CACHE_DIR", "npm": "npm_config_cache", "uv": "UV_CACHE_DIR", "go": "GOMODCACHE"}
_MIB, _TIB = 1 << 20, 1 << 40
_MOST = 16


class Cache(msgspec.Struct, frozen=True):
    """A cache as it is declared: what may be done with it at most, how many bytes it may take, whether every task has
    it, and the variable that says where it is."""

    name: str
    writable: bool
    size: int
    everybody: bool
    variable: str


class Seen(msgspec.Struct, frozen=True):
    """A cache as a sandbox sees it: its folder on the host."""

    name: str
    folder: Path
    writable: bool
    variable: str


def load(keep: Path) -> dict[str, Cache]:
    """The caches of the keep in the folder `keep`, by name. Raises `BadSettings`, which names all that is wrong."""
    return read(keep / "keep.toml", _caches)


def choose(declared: Mapping[str, Cache], asked: Iterable[str] | None) -> tuple[CacheChoice, ...]:
    """What a new task is given: what every task has, and what it has `asked` for, each NAME or NAME=read-only; nothing
    at all for None. Raises `BadInput` and `PolicyDenied`."""
    if asked is None:
        return ()
    found = {each.name: each.writable for each in declared.values() if each.everybody}
    for each in asked:
        name, equals, mode = each.partition("=")
        if equals and mode not in (READ, WRITE):
            raise BadInput(f"{each[:60]!r} asks for no such mode; write NAME, NAME={READ} or NAME={WRITE}")
        cache = declared.get(name)
        if cache is None:
            known = ", ".join(sorted(declared)) or "none"
            raise PolicyDenied(
                f"this keep has no cache {name[:40]!r}, but {known}; its owner declares one under [caches] in keep.toml"
            )
        if mode == WRITE and not cache.writable:
            raise PolicyDenied(f'the cache {name} is {READ}; its owner grants more with mode = "{WRITE}" in keep.toml')
        found[name] = cache.writable and mode != READ
    return tuple(CacheChoice(name, writable) for name, writable in sorted(found.items()))


def granted(declared: Mapping[str, Cache], chosen: Iterable[CacheChoice]) -> tuple[CacheChoice, ...]:
    """What of it the settings still grant."""
    return tuple(
        CacheChoice(each.name, each.writable and declared[each.name].writable)
        for each in chosen
        if each.name in declared
    )


def mounts(seen: Iterable[Seen]) -> list[types.Mount]:
    """What an engine is told of them."""
    return [
        types.Mount(f"{MOUNT}/{each.name}", str(each.folder), type="bind", read_only=not each.writable) for each in seen
    ]


def variables(seen: Iterable[Seen]) -> dict[str, str]:
    """The variables that tell programs of them."""
    return {each.variable: f"{MOUNT}/{each.name}" for each in seen}


def _caches(document: Mapping[str, Any], problems: list[str]) -> dict[str, Cache]:
    table = table_of(document, "caches", problems)
    found = {name: _cache(table, name, problems) for name in table}
    if len(found) > _MOST:
        problems.append(f"[caches] declares {len(found)} caches, more than {_MOST}")
    variables = [each.variable for each in found.values()]
    for variable in sorted({each for each in variables if variables.count(each) > 1}):
        problems.append(f"[caches] {variable} is the variable of more than one")
    return found


def _cache(table: Mapping[str, Any], name: str, problems: list[str]) -> Cache:
    where = f"[caches] {name[:40]} "
    if not _NAME.fullmatch(name):
        problems.append(f"{where}is no name; write it with a to z, digits and -, 32 at most")
    given = table[name]
    if not isinstance(given, dict):
        problems.append(f'{where}is no table; write it like {{ mode = "{WRITE}" }}')
        given = {}
    fields = Fields(given, where, problems)
    cache = Cache(
        name,
        fields.choose("mode", (READ, WRITE)) == WRITE,
        int(fields.take("size", quantity.size, _MIB, 1024 * _TIB, 5 << 30)),
        fields.choose("tasks", ("asked", "all")) == "all",
        fields.match("variable", _VARIABLE, _KNOWN.get(name) or f"SANDKEEP_CACHE_{name.upper().replace('-', '_')}"),
    )
    fields.end()
    return cache
