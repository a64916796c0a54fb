"""The MCP server: the vocabulary as tools for agents, on the official SDK.

Any number of calls are served at once, each on a thread of its own (see `mcp_calls`). A call that the client cancels,
or leaves behind when it hangs up, has what it runs ended, unless the keep's settings have that go on. What the library
refuses is a tool error with its code; nothing of ours is a crash. The keep is opened by the first call, and stays open.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

import anyio
import anyio.to_thread
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.subscriptions import ListenHandler
from mcp.shared.exceptions import MCPError

from sandkeep.events import SandkeepError
from sandkeep.sandboxes import mcp_calls, mcp_prompts, mcp_tools
from sandkeep.sandboxes.mcp_door import McpDoor
from sandkeep.sandboxes.mcp_session import KEY

if TYPE_CHECKING:
    from sandkeep.sandboxes.attendance import Attendance
    from sandkeep.sandboxes.keep import Keep
    from sandkeep.sandboxes.mcp_resources import Watch

INSTRUCTIONS = (
    "sandkeep gives you isolated Docker sandboxes, one for each task, and records all that is done in them. Begin with"
    " create_task_sandbox, or list_tasks to find work that was begun before and resume_task to go on with it; run"
    " commands with execute_in_task. Take a checkpoint before what is risky; restore_checkpoint sets every file back."
    " If others work on the task too, attach with attach_agent_to_task first, and give its token to what you do."
)

_MOST_CALLS, _MOST_READS = 64, 8
_TELL_SECONDS = 0.25

Context = ServerRequestContext[Any, Any]
Found = TypeVar("Found")


@final
class McpServer:
    """The server of one keep. `agent` is who will have done things, by default the client's name and `session`.

    `fronted` says that a front has given each call its key; of other clients none is taken.
    """

    def __init__(self, path: Path, *, agent: str | None = None, session: str = "", fronted: bool = True) -> None:
        self._path, self._agent, self._session, self._fronted = path, agent, session, fronted
        self._keep: Keep | None = None
        self._attendance: Attendance | None = None
        self._opening = anyio.Lock()
        self._ready = False
        self._limiter, self._reads = anyio.CapacityLimiter(_MOST_CALLS), anyio.CapacityLimiter(_MOST_READS)
        self._running: set[McpDoor] = set()
        self._ended = threading.Condition()
        self._leaving = False
        self._watch: Watch | None = None
        self._watched = anyio.Event()
        self._listening: ListenHandler | None = None
        self.on_open: Callable[[], Awaitable[None]] | None = None
        """Called when the keep was opened, before anything is done in it."""
        self.server: Server[Any] = Server(
            "sandkeep",
            instructions=INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
            on_subscribe_resource=self._subscribe,
            on_unsubscribe_resource=self._unsubscribe,
            on_subscriptions_listen=self._listen,
            on_list_prompts=self._list_prompts,
            on_get_prompt=self._get_prompt,
        )

    def head(self) -> int | None:
        """How far the log has come, if it is open."""
        return None if self._keep is None else self._keep.head().position

    def hung_up(self) -> None:
        """The client is gone: what is cancelled from now on, it has not cancelled."""
        self._leaving = True

    async def serve(self, incoming: Any, outgoing: Any) -> None:
        """Serve one session on a pair of streams."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.tell_changes)
            group.start_soon(self._take_up)
            await self.server.run(incoming, outgoing, self.server.create_initialization_options())
            group.cancel_scope.cancel()

    def close(self, seconds: float) -> bool:
        """End what still runs for calls, waiting so long for it; put in order what the agent leaves behind; and close
        the keep. False if something still goes on, as it does when a server is killed."""
        for door in list(self._running):
            if not door.lasting:
                door.cancelled.set()
        with self._ended:
            self._ended.wait_for(lambda: all(door.lasting for door in self._running), seconds)
        if self._watch is not None:
            self._watch.end()
        if self._attendance is not None:
            self._attendance.leave()
        if self._running:
            return False
        if self._keep is not None:
            self._keep.close()
        return True

    async def _list_tools(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[mcp_calls.tool(verb) for verb in mcp_tools.TOOLS.values()])

    async def _call(self, ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        verb = mcp_tools.TOOLS.get(params.name)
        if verb is None:
            raise MCPError(types.INVALID_PARAMS, f"there is no tool {params.name[:80]!r}; list the tools there are")
        try:
            arguments = mcp_tools.arguments(verb, params.arguments)
            keep = await self._opened(ctx)
        except SandkeepError as error:
            return mcp_calls.refused(error)
        assert self._attendance is not None
        meta = ((ctx.params or {}).get("_meta") or {}) if self._fronted else {}
        key = meta.get(KEY)
        door = McpDoor(
            keep, key if isinstance(key, str) else None, lasting=verb.name == "execute" and mcp_calls.lasting(keep)
        )
        made = mcp_calls.Call(verb, door, arguments, meta, self._attendance)
        self._running.add(door)
        async with anyio.create_task_group() as group:
            group.start_soon(_tell, ctx, door)
            try:
                work = partial(self._do, made)
                result = await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
            except anyio.get_cancelled_exc_class():
                if not (door.lasting and self._leaving):
                    door.cancelled.set()
                raise
            finally:
                self._forget(door, begun=False)
            group.cancel_scope.cancel()
        return result

    def _do(self, made: mcp_calls.Call) -> types.CallToolResult:
        with self._ended:
            if made.door not in self._running:
                return types.CallToolResult(content=[], is_error=True)  # nobody waits for it
            made.door.begun = True
        try:
            return made.result()
        finally:
            self._forget(made.door, begun=True)

    def _forget(self, door: McpDoor, *, begun: bool) -> None:
        """It goes on no more; one that was cancelled before it had begun will not begin."""
        with self._ended:
            if door.begun == begun:
                self._running.discard(door)
                self._ended.notify_all()

    async def _list_resources(
        self, ctx: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        from sandkeep.sandboxes import mcp_resources

        return types.ListResourcesResult(resources=await self._asked(ctx, mcp_resources.listed))

    async def _list_templates(
        self, ctx: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        from sandkeep.sandboxes import mcp_resources

        return types.ListResourceTemplatesResult(resource_templates=mcp_resources.templates())

    async def _read_resource(self, ctx: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        from sandkeep.sandboxes import mcp_resources

        contents = await self._asked(ctx, partial(mcp_resources.read, uri=str(params.uri)))
        return types.ReadResourceResult(contents=list(contents))

    async def _subscribe(self, ctx: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
        (await self._following(ctx)).want(str(params.uri), ctx.session)
        return types.EmptyResult()

    async def _unsubscribe(self, ctx: Context, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        (await self._following(ctx)).unwant(str(params.uri))
        return types.EmptyResult()

    async def _listen(
        self, ctx: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        watch = await self._following(ctx)
        if self._listening is None:
            self._listening = ListenHandler(watch.bus)
        return await self._listening(ctx, params)

    async def _list_prompts(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListPromptsResult:
        return types.ListPromptsResult(prompts=mcp_prompts.listed())

    async def _get_prompt(self, ctx: Context, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        return mcp_prompts.prompt(params.name, params.arguments)

    async def _asked(self, ctx: Context, ask: Callable[[Keep], Found]) -> Found:
        """What is asked of the keep, on a thread. What the library refuses is an error of the protocol here."""
        try:
            keep = await self._opened(ctx)
            return await anyio.to_thread.run_sync(ask, keep, limiter=self._reads)
        except SandkeepError as error:
            raise MCPError(types.INVALID_PARAMS, f"{error} [{error.code}]", {"code": error.code}) from error

    async def _following(self, ctx: Context) -> Watch:
        from sandkeep.sandboxes.mcp_resources import Watch

        keep = await self._asked(ctx, lambda keep: keep)
        if self._watch is None:
            self._watch = Watch(keep)
            self._watched.set()
        return self._watch

    async def tell_changes(self) -> None:
        """Tell whoever wants to know what has changed, until cancelled."""
        await self._watched.wait()
        if self._watch is not None:
            await self._watch.tell()

    async def _opened(self, ctx: Context) -> Keep:
        """The keep. Raises what opening it does."""
        return await self._opened_by(self._name(ctx))

    async def _opened_by(self, name: str) -> Keep:
        # Nobody gets it before `on_open` is done: what is told there must not be behind what a call has done.
        if self._ready and self._keep is not None:
            return self._keep
        async with self._opening:
            keep = await anyio.to_thread.run_sync(self._open, name)
            if not self._ready and self.on_open is not None:
                await self.on_open()
            self._ready = True
        return keep

    async def _take_up(self) -> None:
        """Go on with the session if a server of it has died: its agent is there, though it may not call for long."""
        note = self._path / "run" / "sessions" / self._session
        if not (self._session and note.is_file()):
            return
        from sandkeep.sandboxes import attendance

        # Also if the client hangs up now: what is taken up is left in order.
        with anyio.CancelScope(shield=True), suppress(SandkeepError, OSError):
            name = attendance.agent(note)
            if name is not None:
                await self._opened_by(self._agent or name)

    def _open(self, name: str) -> Keep:
        from sandkeep.sandboxes.attendance import Attendance
        from sandkeep.sandboxes.keep import Keep

        if self._keep is None:
            self._keep = Keep.open(self._path, actor=name)
        if self._attendance is None:
            self._attendance = Attendance(self._keep, self._session)
        return self._keep

    def _name(self, ctx: Context) -> str:
        """Who acts: two sessions of one client are two agents."""
        if self._agent is not None:
            return self._agent
        word = self._session[:4]
        with suppress(AttributeError):
            info = ctx.session.client_params.client_info  # type: ignore[union-attr]
            if name := re.sub(r"[^A-Za-z0-9._-]+", "-", info.name)[:40].strip("-"):
                return f"{name}-{word}"
        return f"agent-{word}"


async def _tell(ctx: Context, door: McpDoor) -> None:
    """Tell the client what goes on in a call, as often as it takes that."""
    if ctx.meta is None or ctx.meta.get("progress_token") is None:
        return
    count = 0
    while True:
        await anyio.sleep(_TELL_SECONDS)
        if told := door.taken():
            count += 1
            await ctx.session.report_progress(count, message=told)
