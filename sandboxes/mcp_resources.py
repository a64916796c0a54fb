"""A task's memory, history and events as resources, and who wants to be told when they change.

What is read is the end of it, if there is more than a model can take. Subscribers are told a moment after a commit of
whatever process, and once for many commits.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, final

import anyio
import mcp_types as types
import msgspec
from mcp.server.session import ServerSession
from mcp.server.subscriptions import InMemorySubscriptionBus, ResourceUpdated
from mcp.shared.exceptions import MCPError

from sandkeep.events import Record
from sandkeep.projections import registry
from sandkeep.sandboxes import briefing, documents_record, render
from sandkeep.sandboxes.door import Door, run
from sandkeep.sandboxes.pages import DECISIONS, LOG, PLAN, STATE
from sandkeep.sandboxes.text import moment
from sandkeep.sandboxes.vocabulary import NAMED

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

KINDS = {
    "memory": ("The pages of a task's memory: its plan, state, decisions and log.", "text/markdown"),
    "history": ("What happened in a task, a line for each event.", "text/plain"),
    "events": ("The events of a task as they are on record, a JSON document a line.", "application/jsonl"),
}

MOST_PAGE, MOST_RECORDS, MOST_TASKS = 64 << 10, 500, 30

_TELL_SECONDS = 0.25
_URI = re.compile(r"sandkeep://task/([0-9a-f]{4,64})/(memory|history|events)")
_PAGES = {PLAN: "text/markdown", STATE: "application/json", DECISIONS: "text/markdown", LOG: "application/jsonl"}


def listed(keep: Keep) -> list[types.Resource]:
    """The resources of the tasks that were created last."""
    tasks = run(NAMED["list-tasks"], Door(opened=keep), {"limit": MOST_TASKS}).tasks
    return [
        types.Resource(
            uri=_uri(task.id, kind), name=f"{kind} of {task.id}", title=f"{task.title}: {kind}", mime_type=mime
        )
        for task in tasks
        for kind, (_, mime) in KINDS.items()
    ]


def templates() -> list[types.ResourceTemplate]:
    """How resources are named."""
    return [
        types.ResourceTemplate(uri_template=_uri("{id}", kind), name=kind, description=what, mime_type=mime)
        for kind, (what, mime) in KINDS.items()
    ]


def read(keep: Keep, uri: str) -> list[types.TextResourceContents]:
    """What a resource holds. Raises `MCPError` if there is none of that name, and what `Keep.task` does."""
    found = _URI.fullmatch(uri)
    if found is None:
        raise MCPError(
            types.INVALID_PARAMS, "there is no such resource; they are sandkeep://task/ID/memory, /history and /events"
        )
    task, kind = keep.task(found[1]), found[2]
    if kind == "memory":
        return [
            types.TextResourceContents(uri=f"{uri}/{name}", mime_type=mime, text=briefing.page(task, name, MOST_PAGE))
            for name, mime in _PAGES.items()
        ]
    last = deque(task.history(), MOST_RECORDS)
    text = "".join(_line(each, kind) for each in last)
    return [types.TextResourceContents(uri=uri, mime_type=KINDS[kind][1], text=text)]


def _line(record: Record, kind: str) -> str:
    if kind == "events":
        return msgspec.json.encode(documents_record.record(record)).decode() + "\n"
    return f"{record.position} {moment(record.time_ns)} {record.actor} {record.type} {render.summary(record.event)}\n"


def _uri(task: str, kind: str) -> str:
    return f"sandkeep://task/{task}/{kind}"


@final
class Watch:
    """Who wants to be told of which resources: those of the handshake, each by its session, and those who `listen`.

    Used on the server's event loop; the bus of the keep tells it from a thread of its own.
    """

    def __init__(self, keep: Keep) -> None:
        """Follow what is committed from now on."""
        self.bus = InMemorySubscriptionBus()
        self._wanted: dict[str, set[ServerSession]] = {}
        self._changed: set[str] = set()
        self._some = anyio.Event()
        loop = asyncio.get_running_loop()

        def heard(record: Record) -> None:
            if record.stream.startswith(registry.STREAM):
                loop.call_soon_threadsafe(self._hear, record.stream.removeprefix(registry.STREAM))

        self.end: Callable[[], None] = keep.bus.live(lambda missed: None).subscribe(heard).dispose
        """Follow nothing any more."""

    def want(self, uri: str, session: ServerSession) -> None:
        """Tell a session of this resource. Raises `MCPError` if there is none of that name."""
        if _URI.fullmatch(uri) is None:
            raise MCPError(types.INVALID_PARAMS, "there is no such resource; list their templates")
        self._wanted.setdefault(uri, set()).add(session)

    def unwant(self, uri: str) -> None:
        """Tell nobody of it any more who was told by session."""
        self._wanted.pop(uri, None)

    async def tell(self) -> None:
        """Tell what has changed, until cancelled."""
        while True:
            await self._some.wait()
            await anyio.sleep(_TELL_SECONDS)  # the memory folder follows, and there may be more
            self._some, changed = anyio.Event(), self._changed
            self._changed = set()
            for task in sorted(changed):
                for kind in KINDS:
                    uri = _uri(task, kind)
                    await self.bus.publish(ResourceUpdated(uri=uri))
                    for session in self._wanted.get(uri, ()):
                        await session.send_resource_updated(uri)

    def _hear(self, task: str) -> None:
        self._changed.add(task)
        self._some.set()
