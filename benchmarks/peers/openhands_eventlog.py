"""OpenHands' `EventLog` over its `LocalFileStore`, as a peer of `benchmarks/log.py`; runs in an environment of its own.

Reads a JSON list a line, an action and its arguments, and answers each with a line of JSON.

An event is a JSON file of its own. In the version measured each append syncs the file before it gets its name, and an
empty marker file too, but not the folder: after a power loss an event may be without its name, which favours it. The
event is the one that OpenHands has for a command an agent asks for: an `ActionEvent`, whose action has our fields. It
carries the model's tool call too, so a bare subclass of `Event` with our fields alone, which no conversation of
OpenHands holds, is measured beside it.

A replay is given its index of the folder, and begins with empty caches: the log keeps every event that it has read.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENHANDS_SUPPRESS_BANNER": "1"}  # neither fetch nor print

# This package is in the peer's environment only, so there is nothing here that its types could be checked against.
from openhands.sdk.conversation.event_store import EventLog  # type: ignore[import-not-found]
from openhands.sdk.event import ActionEvent, Event  # type: ignore[import-not-found]
from openhands.sdk.io import LocalFileStore  # type: ignore[import-not-found]
from openhands.sdk.llm import MessageToolCall  # type: ignore[import-not-found]
from openhands.sdk.tool.schema import Action  # type: ignore[import-not-found]


class CommandAction(Action):  # type: ignore[misc]
    argv: list[str]
    cwd: str
    env: list[str]
    timeout_ns: int


class CommandRequested(Event):  # type: ignore[misc]
    source: str = "agent"
    intent: str
    argv: list[str]
    cwd: str
    env: list[str]
    timeout_ns: int


def natural(fields: dict[str, Any]) -> Any:
    """The event that a conversation would hold."""
    intent, rest = fields["intent"], {name: value for name, value in fields.items() if name != "intent"}
    return ActionEvent(
        thought=[],
        action=CommandAction(**rest),
        tool_name="command",
        tool_call_id=intent,
        tool_call=MessageToolCall(id=intent, name="command", arguments=json.dumps(rest), origin="completion"),
        llm_response_id=intent,
    )


class Store:
    """A folder of events of one kind."""

    def __init__(self, folder: Path, kind: str, content: list[dict[str, Any]]) -> None:
        self._folder = str(folder / f"openhands-{kind}")
        self._make = natural if kind == "natural" else lambda fields: CommandRequested(**fields)
        self._content = content
        self._log = EventLog(LocalFileStore(self._folder))
        self._count = 0

    def _put(self, number: int) -> None:
        self._log.append(self._make(self._content[number % len(self._content)]))

    def append(self, count: int) -> float:
        """Events a second by one caller."""
        started = time.perf_counter()
        for number in range(self._count, self._count + count):
            self._put(number)
        taken = time.perf_counter() - started
        self._count += count
        return count / taken

    def together(self, callers: int, each: int) -> float:
        """Events a second by so many asyncio callers, all together, on the loop's threads."""

        async def caller(number: int) -> None:
            for i in range(each):
                await asyncio.to_thread(self._put, number * each + i)

        async def run() -> float:
            started = time.perf_counter()
            await asyncio.gather(*map(caller, range(callers)))
            return time.perf_counter() - started

        taken = asyncio.run(run())
        self._count += callers * each
        return callers * each / taken

    def replay(self) -> float:
        """Events a second over the whole folder."""
        log = EventLog(LocalFileStore(self._folder))
        count = 0
        event = None
        started = time.perf_counter()
        for read in log:
            event = read
            count += 1
        taken = time.perf_counter() - started
        if count != self._count or type(event) is not type(self._make(self._content[0])):
            raise RuntimeError("the replay did not give what was appended")
        return count / taken


def main() -> None:
    folder = Path(sys.argv[1])
    stores: dict[str, Store] = {}
    for line in sys.stdin:
        action, kind, *arguments = json.loads(line)
        answer: object
        if action == "open":
            stores = {kind: Store(folder, kind, *arguments) for kind in ("natural", "bare")}
            answer = {"openhands-sdk": version("openhands-sdk")}
        else:
            answer = getattr(stores[kind], action)(*arguments)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
