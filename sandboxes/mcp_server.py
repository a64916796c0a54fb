"""The MCP server: the vocabulary as tools for agents, on the official SDK.

Any number of calls are served at once, each on a thread of its own. A call that the client cancels, or leaves behind
when it hangs up, has what it runs ended. What the library refuses is a tool error with its code; nothing of ours is a
crash. The keep is opened by the first call, and stays open.

What the front gives a call twice is made once: see `mcp_repeat`.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, final

import anyio
import anyio.to_thread
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError

from sandkeep.events import SandkeepError, calls
from sandkeep.sandboxes import mcp_text, mcp_tools
from sandkeep.sandboxes.door import run
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.mcp_door import McpDoor
from sandkeep.sandboxes.mcp_session import AGAIN, KEY, SINCE
from sandkeep.sandboxes.vocabulary_terms import Verb

INSTRUCTIONS = (
    "sandkeep gives you isolated Docker sandboxes, one for each task, and records all that is done in them. Begin with"
    " create_task_sandbox, or list_tasks to find work that was begun before; run commands with execute_in_task. Take a"
    " checkpoint before what is risky; restore_checkpoint sets every file back. If others work on the task too, attach"
    " with attach_agent_to_task first, and give its token to what you do."
)

_MOST_CALLS = 64
_TELL_SECONDS = 0.25
_logger = logging.getLogger(__name__)

Context = ServerRequestContext[Any, Any]


@final
class McpServer:
    """The server of one keep. `agent` is who will have done things, by default the client's name and `session`."""

    def __init__(self, path: Path, *, agent: str | None = None, session: str = "") -> None:
        self._path, self._agent, self._session = path, agent, session
        self._keep: Keep | None = None
        self._opening = threading.Lock()
        self._limiter = anyio.CapacityLimiter(_MOST_CALLS)
        self._doors: set[McpDoor] = set()
        self._idle = threading.Condition()
        self.on_open: Callable[[], Awaitable[None]] | None = None
        """Called when the keep was opened, before anything is done in it."""
        self.server: Server[Any] = Server(
            "sandkeep", instructions=INSTRUCTIONS, on_list_tools=self._list_tools, on_call_tool=self._call
        )

    def head(self) -> int | None:
        """How far the log has come, if it is open."""
        return None if self._keep is None else self._keep.head().position

    async def serve(self, incoming: Any, outgoing: Any) -> None:
        """Serve one session on a pair of streams."""
        await self.server.run(incoming, outgoing, self.server.create_initialization_options())

    def close(self, seconds: float) -> None:
        """End what still runs for calls, waiting so long for it, and close the keep."""
        for door in list(self._doors):
            door.cancelled.set()
        with self._idle:
            self._idle.wait_for(lambda: not self._doors, seconds)
        if self._keep is not None:
            self._keep.close()

    async def _list_tools(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_tool(verb) for verb in mcp_tools.TOOLS.values()])

    async def _call(self, ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        verb = mcp_tools.TOOLS.get(params.name)
        if verb is None:
            raise MCPError(types.INVALID_PARAMS, f"there is no tool {params.name[:80]!r}; list the tools there are")
        try:
            arguments = mcp_tools.arguments(verb, params.arguments)
            keep = await self._opened(ctx)
        except SandkeepError as error:
            return _refused(error)
        meta = (ctx.params or {}).get("_meta") or {}
        key = meta.get(KEY)
        door = McpDoor(keep, key if isinstance(key, str) else None)
        self._doors.add(door)
        do = partial(self._do, verb, door, arguments, meta)
        async with anyio.create_task_group() as group:
            group.start_soon(_tell, ctx, door)
            try:
                result = await anyio.to_thread.run_sync(do, abandon_on_cancel=True, limiter=self._limiter)
            except anyio.get_cancelled_exc_class():
                door.cancelled.set()
                raise
            group.cancel_scope.cancel()
        return result

    def _do(
        self, verb: Verb, door: McpDoor, arguments: dict[str, Any], meta: Mapping[str, Any]
    ) -> types.CallToolResult:
        """Make a call, on its own thread. What comes of it is never an exception."""
        try:
            result = _made(verb, door, arguments, meta)
            if door.cancelled.is_set() and verb.name == "attach":  # nobody would ever release it
                door.keep.locking.release(result.task, result.token)
            document = mcp_text.shown(result)
            text = mcp_text.text(document, door.notes)
            failed = verb.judges and document.get("ok") is False
            return types.CallToolResult(
                content=[types.TextContent(type="text", text=text)], structured_content=document, is_error=failed
            )
        except SandkeepError as error:
            return _refused(error)
        except OSError as error:
            return _error("os-error", f"the operating system refused: {error.strerror or error}")
        except Exception:  # told to the log; an agent can do nothing with it
            _logger.exception("%s failed", verb.name)
            return _error("internal", "the server failed; its log says why, and nothing was done but what is recorded")
        finally:
            with self._idle:
                self._doors.discard(door)
                self._idle.notify_all()

    async def _opened(self, ctx: Context) -> Keep:
        """The keep. Raises what opening it does."""
        if self._keep is None:
            keep = await anyio.to_thread.run_sync(self._open, self._name(ctx))
            if self.on_open is not None:
                await self.on_open()
            return keep
        return self._keep

    def _open(self, name: str) -> Keep:
        with self._opening:
            if self._keep is None:
                self._keep = Keep.open(self._path, actor=name)
            return self._keep

    def _name(self, ctx: Context) -> str:
        """Who acts: two sessions of one client are two agents."""
        if self._agent is not None:
            return self._agent
        with suppress(AttributeError):
            info = ctx.session.client_params.client_info  # type: ignore[union-attr]
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", info.name)[:40].strip("-")
            if name:
                return f"{name}-{self._session}" if self._session else name
        return f"agent-{self._session}"


def _made(verb: Verb, door: McpDoor, arguments: dict[str, Any], meta: Mapping[str, Any]) -> Any:
    """The result of a call, which may have been made before."""
    do = partial(run, verb, door, arguments)
    since = meta.get(SINCE)
    if door.key is None:
        return do()
    if meta.get(AGAIN) and isinstance(since, int):
        from sandkeep.sandboxes import mcp_repeat

        return mcp_repeat.again(door, verb, arguments, door.key, since, do)
    with calls.call(door.key):
        return do()


async def _tell(ctx: Context, door: McpDoor) -> None:
    """Tell the client what goes on, as often as it takes that."""
    if ctx.meta is None or ctx.meta.get("progress_token") is None:
        return
    count = 0
    while True:
        await anyio.sleep(_TELL_SECONDS)
        if told := door.taken():
            count += 1
            await ctx.session.report_progress(count, message=told)


def _tool(verb: Verb) -> types.Tool:
    return types.Tool(
        name=verb.tool,
        description=verb.tool_help or verb.help,
        input_schema=mcp_tools.input_schema(verb),
        output_schema=mcp_tools.output_schema(verb),
    )


def _refused(error: SandkeepError) -> types.CallToolResult:
    return _error(error.code, str(error))


def _error(code: str, text: str) -> types.CallToolResult:
    said = f"{' '.join(text.split())} [{code}]"
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=said)], is_error=True, _meta={"sandkeep/code": code}
    )
