"""What the tests of resources share: settings, what the engine was told, and commands that run meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from sandkeep.events import SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Result, Task

from .support import container_of, engine

MIB = 1 << 20


def configure(keep: Keep | Path, text: str) -> None:
    """Write what the owner of a keep would write into its keep.toml."""
    path = (keep if isinstance(keep, Path) else keep.path) / "keep.toml"
    path.write_text("\n".join([*path.read_text().splitlines()[:3], text]))


def begun(keep: Keep, title: str, **options: Any) -> Task:
    """A new task whose sandbox runs already."""
    task = keep.create_task(title, **options)
    task.start_sandbox()
    return task


def held(task: Task) -> dict[str, Any]:
    """What the engine was told of the task's sandbox."""
    with engine() as client:
        found: dict[str, Any] = client.api.inspect_container(container_of(task))["HostConfig"]
        return found


def events(task: Task, *kinds: type[ev.Intent] | type[Any]) -> list[Any]:
    """The task's events of these types."""
    return [record.event for record in task.history() if isinstance(record.event, kinds)]


class Running:
    """A command that runs on a thread."""

    def __init__(self, task: Task, *argv: str, timeout: float = 120.0) -> None:
        self._result: list[Result | SandkeepError] = []
        self._thread = threading.Thread(target=self._run, args=(task, argv, timeout))
        self._thread.start()

    def _run(self, task: Task, argv: tuple[str, ...], timeout: float) -> None:
        try:
            self._result.append(task.execute(argv, timeout=timeout))
        except SandkeepError as error:
            self._result.append(error)

    @property
    def result(self) -> Any:
        self._thread.join(120)
        return self._result[0]


def ended(running: Running) -> bool:
    """Whether the command was ended with its sandbox; which of the two was seen to end first depends."""
    return isinstance(running.result, SandkeepError) or running.result.exit_code == 137
