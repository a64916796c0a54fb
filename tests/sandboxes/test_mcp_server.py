"""The MCP server without an engine: what it remembers of its calls, and whose they are."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import mcp_types as types
import pytest

from sandkeep.sandboxes import Keep, attendance
from sandkeep.sandboxes.errors import PolicyDenied
from sandkeep.sandboxes.mcp_door import McpDoor
from sandkeep.sandboxes.mcp_server import McpServer
from sandkeep.sandboxes.mcp_session import AGAIN, KEY, SINCE

from .mcp_client import Client
from .support import eventually

SERVE = Path(__file__).with_name("mcp_serve.py")


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    with Keep.init(tmp_path / "keep") as made:
        yield made


def called(server: McpServer, tool: str, meta: dict[str, Any] | None = None, **arguments: Any) -> Any:
    """A call as the SDK makes it."""
    context: Any = SimpleNamespace(params={"_meta": meta or {}}, meta=None)
    return server._call(context, types.CallToolRequestParams(name=tool, arguments=arguments))


def served(keep: Keep, drive: Callable[[McpServer], Any], **more: Any) -> None:
    """Drive a server until that is done, and close it."""
    keep.close()  # a process opens it once
    server = McpServer(keep.path, agent="tester", session="abcd", **more)
    anyio.run(partial(drive, server))
    assert server.close(5.0)


def test_the_lock_of_an_agent_that_says_nothing_outlives_the_worker(keep: Keep) -> None:
    client = Client(keep.path, SERVE, keep.path, "thinking")
    try:
        client.initialize()
        task = keep.create_task("thought about").id
        client.call("attach_agent_to_task", task=task)
        (note,) = (keep.path / "run" / "sessions").iterdir()
        client.kill_worker()
        eventually(lambda: _is_held(note))
        client.kill_worker()
        client.send(id=1, method="ping")  # by a worker, which has not been called
        client.answer(1)
    finally:
        client.close()
    assert not [each for lock in keep.locks() for each in lock.holding]
    assert not note.exists()


def _is_held(note: Path) -> bool:
    file = os.open(note, os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def test_a_call_that_is_cancelled_before_it_begins_is_forgotten(keep: Keep) -> None:
    async def drive(server: McpServer) -> None:
        await called(server, "list_tasks")
        server._limiter.total_tokens = 1
        async with server._limiter, anyio.create_task_group() as group:
            group.start_soon(called, server, "list_tasks")
            with anyio.fail_after(5):
                while not server._running:
                    await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        assert server._running == set()

    served(keep, drive)


@pytest.mark.parametrize("fronted", [True, False])
def test_only_a_front_says_that_a_call_was_made_before(keep: Keep, fronted: bool) -> None:
    async def drive(server: McpServer) -> None:
        meta = {KEY: "mine", AGAIN: True, SINCE: 0}
        first = await called(server, "create_task_sandbox", {KEY: "mine"}, title="first")
        again = await called(server, "create_task_sandbox", meta, title="second")
        assert (first.structured_content["id"] == again.structured_content["id"]) is fronted
        odd = await called(server, "create_task_sandbox", {KEY: ["no", "text"]}, title="third")
        assert not odd.is_error

    served(keep, drive, fronted=fronted)


def test_nobody_acts_before_the_front_was_told_how_far_the_log_had_come(keep: Keep) -> None:
    heads: list[int | None] = []

    async def drive(server: McpServer) -> None:
        async def tell() -> None:
            heads.append(server.head())
            await anyio.sleep(0.2)
            heads.append(server.head())

        server.on_open = tell
        async with anyio.create_task_group() as group:
            for title in ("one", "two"):
                group.start_soon(partial(called, server, "create_task_sandbox", title=title))
                await anyio.sleep(0.1)
        assert heads == [heads[0]] * 2

    served(keep, drive)


def test_a_note_that_was_not_cut_can_be_read(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    session = attendance.Attendance(keep, "abcd")
    session.worked("f" * 30)
    monkeypatch.setattr(os, "ftruncate", lambda file, length: None)
    session.recorded("f" * 30)
    assert attendance.agent(keep.path / "run" / "sessions" / "abcd") == keep.actor
    session.leave()


def test_who_cancels_an_attach_leaves_the_queue(keep: Keep) -> None:
    task = keep.create_task("queued").id
    keep.locking.acquire(task, agent="other", heartbeat=False)

    async def drive(server: McpServer) -> None:
        with anyio.move_on_after(0.5):
            await called(server, "attach_agent_to_task", task=task, timeout=60.0)
        with anyio.fail_after(5):
            while server._running:
                await anyio.sleep(0.05)

    served(keep, drive)


def test_agents_clone_what_lies_beside_the_keep_and_what_it_grants(keep: Keep, tmp_path: Path) -> None:
    door = McpDoor(keep, None)
    assert door.source(str(tmp_path / "source")) == str((tmp_path / "source").resolve())
    elsewhere = tmp_path.parent / "elsewhere"
    (tmp_path / "link").symlink_to(elsewhere)
    for path in (elsewhere, tmp_path / "link", tmp_path / ".." / "elsewhere"):
        with pytest.raises(PolicyDenied, match="sources"):
            door.source(str(path))
    with (keep.path / "keep.toml").open("a") as file:
        file.write(f"[sessions]\nsources = ['{elsewhere}']\n")
    assert door.source(str(tmp_path / "link")) == str(elsewhere.resolve())
