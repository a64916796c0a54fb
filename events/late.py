"""What is loaded or made when it is first used, so that a question about tasks does not wait for all that can be done
with them.

Type checkers are shown plain imports, and so know every name; what stands for them at run time is loaded by its use.
Behind `if TYPE_CHECKING:` stand the imports of `package.plan` and of `Route` from `package.road`, and behind `else:`

    globals().update(late.bound("package", "plan road:Route"))

This is for modules and for what is called. A class that others derive from, that `isinstance` is asked about or that
`except` names is imported plainly. Safe from any thread. What importing raises is raised by the use.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, final, overload

Owner = TypeVar("Owner")
Made = TypeVar("Made")

_making = threading.RLock()


def bound(package: str, listed: str) -> dict[str, Any]:
    """What stands for what is `listed`: modules of the package, and names that they have, as "module:Name,other"."""
    modules = {module: _Late(package, module, "") for module in listed.split() if ":" not in module}
    return modules | {name: _Late(package, module, name) for name, module in _homes(listed).items()}


def names(package: str, listed: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` (PEP 562) of a package that offers the names of its modules that are `listed`."""
    homes = _homes(listed)

    def getattribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, found)  # so that it is not asked for again
        return found

    return getattribute, lambda: sorted({*vars(sys.modules[package]), *homes})


def _homes(listed: str) -> dict[str, str]:
    pairs = (word.partition(":") for word in listed.split())
    return {name: module for module, _, offered in pairs for name in offered.split(",") if name}


@final
class once(Generic[Owner, Made]):
    """An attribute that is made when it is first asked for: as `functools.cached_property`, and only once however many
    threads ask."""

    def __init__(self, make: Callable[[Owner], Made]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, owner: None, kind: type | None = None) -> Self: ...
    @overload
    def __get__(self, owner: Owner, kind: type | None = None) -> Made: ...

    def __get__(self, owner: Owner | None, kind: type | None = None) -> Self | Made:
        if owner is None:  # asked of the class, as help() does
            return self
        with _making:
            made = vars(owner)
            if self._name not in made:
                made[self._name] = self._make(owner)
            found: Made = made[self._name]
            return found


@final
class _Late:
    """Stands for a module, or for what a module has. It is looked up by each use, because it may be replaced there."""

    def __init__(self, package: str, module: str, name: str) -> None:
        self._module = f"{package}.{module}"
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found(), name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._found()(*arguments, **named)

    def _found(self) -> Any:
        module = importlib.import_module(self._module)
        return getattr(module, self._name) if self._name else module
