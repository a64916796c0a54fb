"""Sizes, times and numbers as people write them: `2GiB`, `500M`, `90s`, `1.5h`."""

from __future__ import annotations

import math
import re

from sandkeep.events import BadInput

_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Za-z]*)")
_BYTES = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", 1):
    _BYTES |= {f"{_letter}B": 1000**_power, f"{_letter}iB": 1024**_power, _letter: 1024**_power}
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def size(value: object) -> int:
    """The bytes in `value`: a number, or a text like `512MiB`; `G` is `GiB`, as Docker has it. Raises `BadInput`."""
    return int(_quantity(value, _BYTES, "size", "2GiB"))


def seconds(value: object) -> float:
    """The seconds in `value`: a number, or a text like `90s` or `1h`. Raises `BadInput`."""
    return _quantity(value, _SECONDS, "time", "90s or 1h")


def number(value: object) -> float:
    """The number that `value` is or says. Raises `BadInput`."""
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise BadInput(f"{str(value)[:40]!r} is no number")


def whole(value: object) -> float:
    """As `number`, if it is a whole one. Raises `BadInput`."""
    found = number(value)
    if found % 1 != 0:  # also true of what is no number, or endless
        raise BadInput(f"{found:g} is no whole number")
    return found


def show_size(size: float) -> str:
    """`size` bytes, short: with the largest unit that leaves a whole number or, failing that, one decimal."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _BYTES[unit]:
            return f"{size / _BYTES[unit]:.1f}".removesuffix(".0") + unit
    return f"{size:.0f}B"


def _quantity(value: object, units: dict[str, float] | dict[str, int], what: str, example: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return value
    found = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or found[2] not in units:
        raise BadInput(f"{str(value)[:40]!r} is no {what}; write it like {example}")
    return float(found[1]) * units[found[2]]
