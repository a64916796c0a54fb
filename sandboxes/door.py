"""What a door gives the function that does a verb: the keep, who acts, and somewhere to tell what goes on.

A door is one call by somebody. The base tells nobody anything, and is what a program uses; the command line's and the
server's tell people and agents. It is used by one thread, and closes the keep that it has opened.
"""

from __future__ import annotations

import importlib
import threading
import types
import typing
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sandkeep.sandboxes.vocabulary_terms import Verb

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep


class Door:
    """One call of a verb: on the keep in the folder `path`, or on one that is `opened` already, which stays open.

    `actor` is who will have done it, by default who runs this program. A call that comes twice has the same `key`.
    """

    def __init__(
        self,
        path: Path = Path(".sandkeep"),
        *,
        actor: str | None = None,
        key: str | None = None,
        opened: Keep | None = None,
    ) -> None:
        self.path = path if opened is None else opened.path
        self.actor = actor
        self.key = key
        self.stop: threading.Event | None = None
        """Once it is set, nobody waits for the call any more: a command that runs for it is ended."""
        self.lasting = False
        """Whether a command that runs for the call goes on if this process ends."""
        self._keep = opened
        self._own = opened is None

    @property
    def keep(self) -> Keep:
        """The keep, opened when it is first asked for. Raises what `Keep.open` does."""
        if self._keep is None:
            from sandkeep.sandboxes.keep import Keep

            self._keep = Keep.open(self.path, actor=self.actor)
        return self._keep

    @property
    def opened(self) -> Keep | None:
        """The keep, if it is open already."""
        return self._keep

    def source(self, path: str) -> str:
        """The repository that a new task is to be a clone of, if it may. Raises `PolicyDenied`."""
        return path

    def progress(self, said: str) -> None:
        """Something that takes a while goes on."""

    def measured(self, done: int, total: int, *, size: bool = True) -> None:
        """So much of it is done: bytes, if it is a `size`."""

    def output(self, stream: str, data: bytes) -> None:
        """What a command writes to "stdout" or "stderr", as it comes. What this raises ends the command."""

    def note(self, said: str) -> None:
        """Something that is worth knowing, and that the result holds as well."""

    def counting(self, what: str) -> Callable[[int], None]:
        """A callback for progress that is a number."""
        return lambda count: self.progress(f"{what}: {count}")

    def close(self) -> None:
        """Close the keep, if this opened it. Safe to call twice."""
        if self._own and self._keep is not None:
            self._keep.close()
            self._keep = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def named(function: str) -> Callable[..., Any]:
    """The function that a verb names as "module:function"."""
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(f"sandkeep.sandboxes.{module}"), name)
    return found


def answers(verb: Verb) -> tuple[Any, ...]:
    """The types that a verb's answer may have; of one that `streams`, each of its answers."""
    made = typing.get_type_hints(named(verb.run))["return"]
    if verb.streams:
        made = typing.get_args(made)[0]
    return typing.get_args(made) if isinstance(made, types.UnionType) else (made,)


def run(verb: Verb, door: Door, arguments: dict[str, Any]) -> Any:
    """Do a verb, with what it is given by name; what is left out has its default. Returns its result, which is a
    document, a list of them or, of a verb that `streams`, an iterator. Raises what the library does."""
    return named(verb.run)(door, **arguments)
