"""Modules that are loaded when something of them is first used, so that a question about tasks does not wait for all
that can be done with them.

Type checkers are shown the plain imports beside it, and so know every name:

    if TYPE_CHECKING:
        from sandkeep.sandboxes import pool, workspace
    else:
        pool, workspace = late.modules("sandkeep.sandboxes", "pool", "workspace")

Safe from any thread: Python lets one import a module while the others wait. What importing raises is raised by the use.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

__all__ = ["modules", "names"]


@final
class _Late:
    """Stands for a module. What is asked of it is asked of the module, each time: others may replace what is in it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        loaded = sys.modules.get(self._name)
        # While it is being loaded by another thread it is there, and has not yet all that it will have.
        if loaded is None or getattr(loaded.__spec__, "_initializing", False):
            loaded = importlib.import_module(self._name)
        return getattr(loaded, name)


def modules(package: str, *names: str) -> Iterator[Any]:
    """What stands for these modules of a package."""
    return (_Late(f"{package}.{name}") for name in names)


def names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` (PEP 562) of a package that offers what its modules define: `homes` has, for each
    module, the names that are of it, in one string."""
    home = {name: module for module, listed in homes.items() for name in listed.split()}

    def getattribute(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, found)  # so that it is not asked for again
        return found

    return getattribute, lambda: sorted({*vars(sys.modules[package]), *home})
