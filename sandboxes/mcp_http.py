"""`sandkeep mcp --http PORT`: the MCP server as streamable HTTP, on the loopback interface, for who has the token.

The token lies in the keep's `run/mcp-token`, which only its owner can read. Who has no token learns nothing but that;
a request that names another host, or comes from a page of another origin, is refused by the SDK, so that no web site
reaches us through a browser. One process serves all clients, and one agent is behind what they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, final

import anyio
import uvicorn

from sandkeep.sandboxes.mcp_lines import MOST_LINE
from sandkeep.sandboxes.mcp_server import McpServer

PATH = "/mcp"
_ORDER_SECONDS = 15.0

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


@final
class _Guarded:
    """An application for those who show the token."""

    def __init__(self, app: Asgi, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            shown = [value for name, value in scope.get("headers", ()) if name == b"authorization"]
            if len(shown) != 1 or not hmac.compare_digest(shown[0], self._expected):
                headers = [(b"www-authenticate", b"Bearer"), (b"content-length", b"0")]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return
        await self._app(scope, receive, send)


@final
class _Server(uvicorn.Server):
    """A server that a signal ends in order; uvicorn's own would raise it again when it is done."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals as long as we serve."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._told_to_end)
        yield

    def _told_to_end(self) -> None:
        self.should_exit = True


def token(keep: Path) -> str:
    """The token of a keep, made when it is first asked for. Raises `OSError`."""
    path = keep / "run" / "mcp-token"
    with contextlib.suppress(FileExistsError):
        made = path.with_name(f"mcp-token.{secrets.token_hex(4)}")
        descriptor = os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(32))
            os.link(made, path)  # whole or not at all, and never another's
        finally:
            made.unlink()
    return path.read_text()


def serve(keep: Path, port: int, agent: str | None, say: Callable[[str], None]) -> None:
    """Serve until a signal says to end. With port 0 one is chosen; `say` is told the address. Raises `OSError`."""
    server = McpServer(keep, agent=agent, session=secrets.token_hex(8), fronted=False)
    app = server.server.streamable_http_app(
        streamable_http_path=PATH, host="127.0.0.1", max_request_body_size=MOST_LINE
    )
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(_Guarded(app, token(keep)), log_config=None, access_log=False, timeout_graceful_shutdown=3)
    say(f"serving http://127.0.0.1:{listener.getsockname()[1]}{PATH}; the token is in {keep / 'run' / 'mcp-token'}")

    async def run() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(server.tell_changes)
            await _Server(config).serve(sockets=[listener])
            server.hung_up()
            group.cancel_scope.cancel()

    try:
        anyio.run(run)
    finally:
        listener.close()
        if not server.close(_ORDER_SECONDS):
            os._exit(0)  # the thread that waits for what goes on would hold us up as long
