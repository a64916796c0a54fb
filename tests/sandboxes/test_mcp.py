"""The MCP server on a real engine: driven by the official client over pipes, and by one that says what it likes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from mcp import Client as McpClient
from mcp import MCPError, StdioServerParameters

from sandkeep.events.catalogue import CommandExecuted
from sandkeep.sandboxes import Keep
from sandkeep.sandboxes.mcp_tools import TOOLS

from .mcp_client import Client
from .support import SCRIPT, eventually

pytestmark = pytest.mark.engine

SERVE = Path(__file__).with_name("mcp_serve.py")

Mode = Literal["auto", "legacy"]


@pytest.fixture(scope="module", autouse=True)
def sandboxes_are_known(shared_keep: Keep) -> Iterator[None]:
    """Ask the engine, for a keep that has asked it nothing leaves nothing there to remove, but our servers do."""
    yield
    shared_keep.engine.containers(shared_keep.id)


@asynccontextmanager
async def connected(keep: Keep, mode: Mode = "auto") -> AsyncIterator[McpClient]:
    """The official client, connected with `sandkeep mcp` as a process of its own."""
    server = StdioServerParameters(command=str(SCRIPT), args=["mcp", "--keep", str(keep.path)], env=dict(os.environ))
    async with McpClient(server, mode=mode) as client:
        yield client


async def call(client: McpClient, tool: str, **arguments: Any) -> Any:
    """What a tool gives, which it has to."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return result.structured_content


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_an_agent_does_a_task_with_every_tool(shared_keep: Keep, mode: Mode) -> None:
    used = set()

    async def use(client: McpClient, tool: str, **arguments: Any) -> Any:
        used.add(tool)
        return await call(client, tool, **arguments)

    async def drive() -> None:
        async with connected(shared_keep, mode) as client:
            listed = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert listed.keys() == TOOLS.keys()
            task = (await use(client, "create_task_sandbox", title=f"by {mode}", tag=["mcp"]))["id"]
            attached = await use(client, "attach_agent_to_task", task=task)
            token = attached["token"]
            assert attached["agent"] == (await use(client, "show_task", task=task))["owner"]
            ran = await use(client, "execute_in_task", task=task, argv=["sh", "-c", "echo a >f; echo b"], token=token)
            assert (ran["exit_code"], ran["stdout"]) == (0, "b\n")
            part = await use(client, "read_output", task=task, command=ran["command"])
            assert (part["text"], part["next"]) == ("b\n", None)
            taken = await use(client, "checkpoint", task=task, label="here", token=token)
            await use(client, "execute_in_task", task=task, argv=["rm", "f"], token=token)
            await use(client, "restore_checkpoint", task=task, checkpoint=taken["id"], token=token)
            ran = await use(client, "execute_in_task", task=task, argv=["cat", "f"], token=token)
            assert ran["stdout"] == "a\n"
            assert (await use(client, "detach_agent_from_task", task=task, token=token))["task"] == task
            found = await use(client, "list_tasks", tag=["mcp"], text=mode)
            assert [each["id"] for each in found["tasks"]] == [task]

    asyncio.run(drive())
    assert used == TOOLS.keys()


def test_what_cannot_be_done_is_told_and_the_server_lives(shared_keep: Keep) -> None:
    async def drive() -> None:
        async with connected(shared_keep) as client:

            async def refused(tool: str, **arguments: Any) -> tuple[str, str]:
                result = await client.call_tool(tool, arguments)
                assert result.is_error
                assert result.meta is not None
                return result.meta["sandkeep/code"], result.content[0].text  # type: ignore[union-attr]

            code, text = await refused("show_task", task="ffffffff")
            assert code == "task-not-found"
            assert text.endswith("[task-not-found]")
            for arguments in ({"argv": "true"}, {"argv": ["true"], "other": 1}, {"argv": ["true"], "timeout": "x"}):
                code, text = await refused("execute_in_task", task="ffffffff", **arguments)
                assert code == "bad-input"
                assert "schema" in text
            assert (await refused("execute_in_task", task="ffffffff", argv=["x" * (10 << 20)]))[0] == "task-not-found"
            with pytest.raises(MCPError, match="no tool"):
                await client.call_tool("format_disk", {})
            await call(client, "list_tasks")

    asyncio.run(drive())


def test_output_comes_while_a_command_runs_and_is_cut_for_the_model(shared_keep: Keep) -> None:
    told: list[str] = []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        told.append(str(message))

    async def drive() -> None:
        async with connected(shared_keep) as client:
            task = (await call(client, "create_task_sandbox", title="long output"))["id"]
            line = "echo begun; sleep 1.5; seq 1 100000"
            result = await client.call_tool(
                "execute_in_task", {"task": task, "argv": ["sh", "-c", line]}, progress_callback=tell
            )
            assert any("begun" in each and "99999" not in each for each in told), told
            ran = result.structured_content
            assert ran is not None
            text: str = result.content[0].text  # type: ignore[union-attr]
            for shown in (ran["stdout"], text):
                assert len(shown) < 20_000
                assert "read_output" in shown
                assert shown.rstrip().endswith("100000")
            whole, offset = "", 0
            while offset is not None:
                part = await call(
                    client, "read_output", task=task, command=ran["command"], offset=offset, length=1 << 18
                )
                whole, offset = whole + part["text"], part["next"]
            assert whole == "begun\n" + "".join(f"{number}\n" for number in range(1, 100_001))

    asyncio.run(drive())


def test_a_cancelled_command_is_ended_with_all_it_started(shared_keep: Keep) -> None:
    async def drive() -> str:
        async with connected(shared_keep) as client:
            task = (await call(client, "create_task_sandbox", title="cancelled"))["id"]
            line = "(setsid sh -c 'sleep 77; touch late' &) ; echo said; touch begun; sleep 77"
            running = asyncio.create_task(
                client.call_tool("execute_in_task", {"task": task, "argv": ["sh", "-c", line]})
            )
            workspace = shared_keep.task(task).workspace
            while not (workspace / "begun").exists():
                await asyncio.sleep(0.05)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            left = await asyncio.to_thread(eventually, lambda: not shared_keep.task(task).state.pending)
            assert left
            ran = await call(client, "execute_in_task", task=task, argv=["sh", "-c", "ps ax | grep -c '[s]leep 77'"])
            assert ran["stdout"] == "0\n"
            return str(task)

    task = asyncio.run(drive())
    ended = [record.event for record in shared_keep.task(task).history() if isinstance(record.event, CommandExecuted)]
    assert (ended[0].reason, ended[0].stdout.data) == ("stopped", b"said\n")


def test_a_command_goes_on_when_its_server_is_killed_and_is_joined(shared_keep: Keep) -> None:
    client = Client(shared_keep.path, SERVE, shared_keep.path, "killed")
    try:
        client.initialize()
        task = client.call("create_task_sandbox", title="killed")["id"]
        line = "echo before; touch begun; while ! test -e go; do sleep 0.1; done; echo after; echo x >>times"
        client.send_call(7, "execute_in_task", task=task, argv=["sh", "-c", line])
        workspace = shared_keep.task(task).workspace
        eventually(lambda: (workspace / "begun").exists())
        client.kill_worker()
        time.sleep(0.5)
        (workspace / "go").touch()
        ran = client.answer(7)["result"]["structuredContent"]
        assert (ran["exit_code"], ran["stdout"]) == (0, "before\nafter\n")
        assert (workspace / "times").read_text() == "x\n"
        assert client.call("execute_in_task", task=task, argv=["cat", "times"])["stdout"] == "x\n"
    finally:
        client.close()


def test_what_needs_no_engine_works_without_one(tmp_path: Path) -> None:
    with Keep.init(tmp_path / "keep") as keep:
        nowhere = {"DOCKER_HOST": f"unix://{tmp_path}/nothing.sock"}
        client = Client(keep.path, SERVE, keep.path, "alone", env=nowhere)
        try:
            client.initialize()
            task = client.call("create_task_sandbox", title="alone")["id"]
            assert client.call("show_task", task=task)["state"] == "created"
            assert client.call("checkpoint", task=task)["files"] == 0
            client.send_call(9, "execute_in_task", task=task, argv=["true"])
            refused = client.answer(9)["result"]
            assert refused["isError"]
            assert refused["_meta"]["sandkeep/code"] == "engine-unreachable"
        finally:
            client.close()


def test_there_is_nothing_to_serve_without_a_keep(tmp_path: Path) -> None:
    client = Client(tmp_path, SERVE, tmp_path / "none", "nobody")
    try:
        client.initialize()
        client.send_call(1, "list_tasks")
        refused = client.answer(1)["result"]
        assert refused["_meta"]["sandkeep/code"] == "keep-not-found"
        with Keep.init(tmp_path / "none"):
            client.send_call(2, "list_tasks")
            assert client.answer(2)["result"]["structuredContent"]["tasks"] == []
    finally:
        client.close()
