"""What sandboxes may use: the defaults, what `keep.toml` says, and what a task is given.

    [limits]
    memory = "2GiB"           # and swap, cpus, pids, tmp, disk, open_files, output, time
    memory_max = "4GiB"       # up to here a sandbox is given more by itself when it runs short
    when_full = "ask"         # or "kill": what follows when it may not be given more
    [limits.image.developer]
    memory = "4GiB"           # and the like, for sandboxes of this image
    [budget]
    memory = "16GiB"          # what all live sandboxes of the keep together may be promised

Read again whenever it is asked for, so that a change takes effect with the next sandbox. Everything that is wrong is
named at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from sandkeep.events.catalogue import Limits
from sandkeep.sandboxes import quantity
from sandkeep.sandboxes.errors import BadLimits
from sandkeep.sandboxes.fields import Fields, read, table_of
from sandkeep.sandboxes.recipe import parse_tag

LIMITS = Limits(
    memory_bytes=2 << 30,
    nano_cpus=2_000_000_000,
    pids=512,
    tmp_bytes=512 << 20,
    swap_bytes=0,
    disk_bytes=20 << 30,
    output_bytes=1 << 30,
    command_ns=86_400 * 10**9,
)
"""What a sandbox may use when nobody says otherwise, on a machine that has as much. Open files are limited as the
engine limits them: it may not be allowed to give more than it has."""

_IMAGE = "image"
_MIB, _TIB = 1 << 20, 1 << 40


class _Kind(msgspec.Struct, frozen=True):
    """How a number is written, the range that it lies in, and what it is multiplied by to be stored."""

    parse: Callable[[object], float]
    least: float
    most: float
    scale: float = 1


_KINDS: dict[str, tuple[str, _Kind]] = {
    # Less memory than Docker itself takes for a container, 6 MiB, or than our agent needs, starts nothing.
    "memory": ("memory_bytes", _Kind(quantity.size, 32 * _MIB, 16 * _TIB)),
    "swap": ("swap_bytes", _Kind(quantity.size, 0, 16 * _TIB)),
    "cpus": ("nano_cpus", _Kind(quantity.number, 0.01, 4096, 1e9)),
    "pids": ("pids", _Kind(quantity.whole, 16, 4_194_304)),
    "tmp": ("tmp_bytes", _Kind(quantity.size, _MIB, 16 * _TIB)),
    "disk": ("disk_bytes", _Kind(quantity.size, 0, 1024 * _TIB)),
    "open_files": ("open_files", _Kind(quantity.whole, 0, 1_048_576)),
    "output": ("output_bytes", _Kind(quantity.size, 1, 1024 * _MIB)),
    "time": ("command_ns", _Kind(quantity.seconds, 0.001, 86_400, 1e9)),
}

NAMES = tuple(_KINDS)
"""What can be limited, as `keep.toml` and the Python interface call it."""


class Relief(msgspec.Struct, frozen=True):
    """What is done when a sandbox runs short of memory: it is given more by itself up to `memory_max`, the ceiling (0:
    never); then somebody is asked (`ask`), and silence for `answer_seconds` is a no. After a no it goes on as it is, or
    is stopped (`stop`)."""

    memory_max: int = 0
    ask: bool = False
    answer_seconds: float = 300.0
    stop: bool = False


class Adapting(msgspec.Struct, frozen=True):
    """Whether a new sandbox's memory is suggested by what those like it have used, times `headroom`, and at least
    `floor` bytes."""

    on: bool = False
    headroom: float = 1.5
    floor: int = 256 * _MIB


class Budget(msgspec.Struct, frozen=True):
    """What all live sandboxes of the keep may be promised; None is what all of the machine may. Who needs more waits
    for so many seconds at most."""

    memory: int | None = None
    wait_seconds: float = 60.0


class Host(msgspec.Struct, frozen=True):
    """What all sandboxes of a machine may have together; None is what the machine has (see `ledger`)."""

    memory: int | None = None
    nano_cpus: int | None = None
    pids: int | None = None


class Settings(msgspec.Struct, frozen=True):
    """All that `keep.toml` says of limits."""

    limits: Limits = LIMITS
    relief: Relief = Relief()
    adapting: Adapting = Adapting()
    budget: Budget = Budget()
    images: dict[str, Limits] = {}

    def of(self, image: str) -> Limits:
        """What a sandbox of an image may use: by its name, or by the name and version that a task has it by."""
        known = parse_tag(image)
        return self.images.get(image) or self.images.get(known[0] if known else "") or self.limits


def load(keep: Path) -> Settings:
    """The settings of the keep in the folder `keep`. Raises `BadSettings`, which names all that is wrong."""
    return read(keep / "keep.toml", _settings)


def load_host(folder: Path) -> Host:
    """What `host.toml` in this folder says, if there is one. Raises `BadSettings`, which names all that is wrong."""
    path = folder / "host.toml"
    return read(path, _host) if path.exists() else Host()


def chosen(asked: Mapping[str, object], defaults: Limits) -> Limits | None:
    """`defaults` with what is `asked` for by the names in `NAMES`; None if that is nothing. Raises `BadLimits`, which
    names all that is wrong."""
    wanted = {name: value for name, value in asked.items() if value is not None}
    problems: list[str] = []
    limits = _limits(wanted, defaults, problems, "")
    for name in sorted(set(wanted) - set(NAMES)):
        problems.append(f"{name[:40]!r} is no limit; those there are: {', '.join(NAMES)}")
    if problems:
        raise BadLimits(f"{'; '.join(problems)}; correct that")
    return limits if wanted else None


def named(*values: object) -> dict[str, object]:
    """What is asked for, in the order of `NAMES`, by name."""
    return dict(zip(NAMES, values, strict=True))


def document(limits: Limits) -> dict[str, float]:
    """The limits by their names in `NAMES`, as numbers: bytes, processors, seconds."""
    return {
        name: getattr(limits, field) / kind.scale if kind.scale != 1 else getattr(limits, field)
        for name, (field, kind) in _KINDS.items()
    }


def _host(document: Mapping[str, Any], problems: list[str]) -> Host:
    fields = Fields(table_of(document, "budget", problems), "[budget] ", problems)
    memory = int(fields.take("memory", quantity.size, 32 * _MIB, 1024 * _TIB, 0))
    cpus = int(fields.take("cpus", quantity.number, 0.01, 1_048_576, 0) * 1e9)
    pids = int(fields.take("pids", quantity.whole, 16, 1 << 30, 0))
    fields.end()
    Fields({name: value for name, value in document.items() if name != "budget"}, "", problems).end()
    return Host(memory or None, cpus or None, pids or None)


def _settings(document: Mapping[str, Any], problems: list[str]) -> Settings:
    table = table_of(document, "limits", problems)
    limits = _limits(table, LIMITS, problems, "[limits] ")
    images = {
        image: _of_image(image, table_of(of, image, problems), limits, problems)
        for of in [table_of(table, _IMAGE, problems)]
        for image in of
    }
    known = (*NAMES, _IMAGE)
    others = Fields({name: value for name, value in table.items() if name not in known}, "[limits] ", problems)
    most = int(others.take("memory_max", quantity.size, 0, 16 * _TIB, 0))
    if 0 < most < limits.memory_bytes:
        problems.append(
            f"[limits] memory_max is less than memory, {quantity.show_size(limits.memory_bytes)}; it has to be more"
        )
    relief = Relief(
        most,
        others.choose("when_full", ("kill", "ask")) == "ask",
        others.take("answer", quantity.seconds, 1, 86_400, Relief().answer_seconds),
        others.choose("on_denied", ("resume", "stop")) == "stop",
    )
    adapting = Adapting(
        others.choose("adaptive", (False, True)) is True,
        others.take("headroom", quantity.number, 1, 100, Adapting().headroom),
        int(others.take("floor", quantity.size, 32 * _MIB, 16 * _TIB, Adapting().floor)),
    )
    others.end()
    rest = Fields(table_of(document, "budget", problems), "[budget] ", problems)
    memory = rest.take("memory", quantity.size, 32 * _MIB, 1024 * _TIB, -1)
    budget = Budget(
        None if memory < 0 else int(memory), rest.take("wait", quantity.seconds, 0, 86_400, Budget().wait_seconds)
    )
    rest.end()
    return Settings(limits, relief, adapting, budget, images)


def _of_image(image: str, table: Mapping[str, object], defaults: Limits, problems: list[str]) -> Limits:
    where = f"[limits.image.{image[:40]}] "
    Fields({name: value for name, value in table.items() if name not in NAMES}, where, problems).end()
    return _limits(table, defaults, problems, where)


def _limits(table: Mapping[str, object], defaults: Limits, problems: list[str], where: str) -> Limits:
    fields = Fields(table, where, problems)
    changed: dict[str, int] = {}
    for name, (field, kind) in _KINDS.items():
        if name in table:
            changed[field] = int(
                fields.take(name, kind.parse, kind.least, kind.most, getattr(defaults, field) / kind.scale) * kind.scale
            )
    return msgspec.structs.replace(defaults, **changed)
