"""The MCP server on a real engine: driven by the official client over pipes, and by one that says what it likes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
from mcp import Client as McpClient
from mcp import MCPDeprecationWarning, MCPError, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent, TextResourceContents

from sandkeep.events.catalogue import CommandExecuted
from sandkeep.sandboxes import Keep, attendance, mcp_prompts
from sandkeep.sandboxes.mcp_tools import TOOLS

from .mcp_client import Client
from .mcp_tour import tour
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
async def connected(keep: Keep, mode: Mode = "auto", told: Any = None) -> AsyncIterator[McpClient]:
    """The official client, connected with `sandkeep mcp` as a process of its own; what else it says is `told`."""
    server = StdioServerParameters(command=str(SCRIPT), args=["mcp", "--keep", str(keep.path)], env=dict(os.environ))
    async with McpClient(server, mode=mode, message_handler=told) as client:
        yield client


def said(result: CallToolResult) -> str:
    """What a model is shown of a result."""
    (shown,) = result.content
    assert isinstance(shown, TextContent)
    return shown.text


async def call(client: McpClient, tool: str, **arguments: Any) -> Any:
    """What a tool gives, which it has to."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return result.structured_content


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_an_agent_does_a_task_with_every_tool(shared_keep: Keep, mode: Mode) -> None:
    used = set()

    async def drive() -> None:
        async with connected(shared_keep, mode) as client:

            async def use(tool: str, **arguments: Any) -> Any:
                used.add(tool)
                return await call(client, tool, **arguments)

            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS.keys()
            title = f"by {mode}"
            task = (await use("create_task_sandbox", title=title, tag=["mcp"]))["id"]
            attached = await use("attach_agent_to_task", task=task)
            token = attached["token"]
            assert attached["agent"] == (await use("show_task", task=task))["owner"]
            ran = await use("execute_in_task", task=task, argv=["sh", "-c", "echo a >f; echo b"], token=token)
            assert (ran["exit_code"], ran["stdout"]) == (0, "b\n")
            part = await use("read_output", task=task, command=ran["command"])
            assert (part["text"], part["next"]) == ("b\n", None)
            taken = await use("checkpoint", task=task, label="here", token=token)
            await use("execute_in_task", task=task, argv=["rm", "f"], token=token)
            await use("restore_checkpoint", task=task, checkpoint=taken["id"], token=token)
            ran = await use("execute_in_task", task=task, argv=["cat", "f"], token=token)
            assert ran["stdout"] == "a\n"
            told = (await use("resume_task", task=task))["briefing"]
            assert [each["agent"] for each in told["attached"]] == [attached["agent"]]
            assert (await use("detach_agent_from_task", task=task, token=token))["task"] == task
            found = await use("list_tasks", tag=["mcp"], text=mode)
            assert [each["id"] for each in found["tasks"]] == [task]
            if mode == "auto":
                await tour(use, shared_keep, task, title)
                assert used == TOOLS.keys()
            assert len((await client.list_prompts()).prompts) == len(mcp_prompts.listed())

    asyncio.run(drive())


def test_what_cannot_be_done_is_told_and_the_server_lives(shared_keep: Keep) -> None:
    async def drive() -> None:
        async with connected(shared_keep) as client:

            async def refused(tool: str, **arguments: Any) -> tuple[str, str]:
                result = await client.call_tool(tool, arguments)
                assert result.is_error
                assert result.meta is not None
                return result.meta["sandkeep/code"], said(result)

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
            text = said(result)
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
        client.send(id="sandkeep/ping", method="tools/list")
        assert len(client.answer("sandkeep/ping")["result"]["tools"]) == len(TOOLS)
        client.send_call(1, "list_tasks")
        refused = client.answer(1)["result"]
        assert refused["_meta"]["sandkeep/code"] == "keep-not-found"
        with Keep.init(tmp_path / "none"):
            client.send_call(2, "list_tasks")
            assert client.answer(2)["result"]["structuredContent"]["tasks"] == []
    finally:
        client.close()


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_task_can_be_read_and_followed_as_resources(shared_keep: Keep, mode: Mode) -> None:
    task = shared_keep.create_task(f"followed by {mode}")
    uri = f"sandkeep://task/{task.id}/history"
    told: list[str] = []

    async def tell(message: object) -> None:
        params = getattr(message, "params", None)
        told.append(str(getattr(params, "uri", "")))

    async def drive() -> None:
        async with connected(shared_keep, mode, tell) as client:
            listed = [str(each.uri) for each in (await client.list_resources()).resources]
            assert uri in listed
            assert len((await client.list_resource_templates()).resource_templates) == 3
            task.record_decision("use tabs")
            for kind, found in (("memory", "use tabs"), ("history", "DecisionRecorded"), ("events", '"use tabs"')):
                read = await client.read_resource(f"sandkeep://task/{task.id}/{kind}")
                assert any(found in each.text for each in read.contents if isinstance(each, TextResourceContents))
            with pytest.raises(MCPError, match="no such resource"):
                await client.read_resource("sandkeep://task/../keep")
            with pytest.raises(MCPError, match="task-not-found"):
                await client.read_resource("sandkeep://task/ffffffff/memory")
            if mode == "legacy":
                with pytest.warns(MCPDeprecationWarning):
                    await client.session.subscribe_resource(uri)
                await asyncio.to_thread(task.record_decision, "use spaces")
                while uri not in told:
                    await asyncio.sleep(0.05)
            else:
                async with client.listen(resource_subscriptions=[uri]) as events:
                    await asyncio.to_thread(task.record_decision, "use spaces")
                    async for event in events:
                        assert getattr(event, "uri", None) == uri
                        break

    asyncio.run(asyncio.wait_for(drive(), 60))


def test_people_have_prompts_for_what_agents_do() -> None:
    listed = {each.name: each for each in mcp_prompts.listed()}
    assert {"create-task", "resume-task", "execute"} <= listed.keys()
    (said,) = mcp_prompts.prompt("create-task", {"title": "Fix the parser", "other": "x"}).messages
    assert isinstance(said.content, TextContent)
    assert said.content.text.startswith("Call the tool create_task_sandbox")
    assert "title: Fix the parser" in said.content.text
    assert "other" not in said.content.text
    with pytest.raises(MCPError, match="needs title"):
        mcp_prompts.prompt("create-task", {})
    with pytest.raises(MCPError, match="no prompt"):
        mcp_prompts.prompt("nothing", {})


def test_who_hangs_up_leaves_everything_in_order_for_the_next_one(shared_keep: Keep) -> None:
    client = Client(shared_keep.path, SERVE, shared_keep.path, "first")
    client.initialize()
    task = client.call("create_task_sandbox", title="interrupted")["id"]
    token = client.call("attach_agent_to_task", task=task)["token"]
    client.call("execute_in_task", task=task, argv=["sh", "-c", "echo 1 >new; exit 3 # pytest"], token=token)
    client.send_call(5, "execute_in_task", task=task, argv=["sh", "-c", "touch begun; sleep 78"], token=token)
    found = shared_keep.task(task)
    eventually(lambda: (found.workspace / "begun").exists())
    client.close()
    assert not [each for lock in shared_keep.locks() if lock.task == task for each in lock.holding]
    assert [each.label for each in found.checkpoints()] == ["when first left"]
    assert list((shared_keep.path / "run" / "sessions").iterdir()) == []
    (found.workspace / "later").touch()
    found.record_decision("go on", reason="it is nearly done")
    second = Client(shared_keep.path, SERVE, shared_keep.path, "second")
    try:
        second.initialize()
        told = second.call("resume_task", task=task)["briefing"]
        assert told["runs_in_all"] == 2
        assert told["runs"][0]["ended"] == "stopped"
        assert told["tests"]["exit_code"] == 3
        assert told["running"] == told["attached"] == []
        assert [each["text"] for each in told["decided"]] == ["go on"]
        assert told["changed"] == [{"path": "later", "change": "added"}]
        assert told["checkpoint"]["label"] == "when first left"
    finally:
        second.close()


def test_what_an_agent_runs_goes_on_if_the_keep_says_so(shared_keep: Keep) -> None:
    settings = shared_keep.path / "keep.toml"
    before = settings.read_text()
    settings.write_text(before + '\n[sessions]\ncommands = "keep"\n')
    try:
        client = Client(shared_keep.path, SERVE, shared_keep.path, "leaving")
        client.initialize()
        task = client.call("create_task_sandbox", title="lasting")["id"]
        line = "touch begun; while ! test -e go; do sleep 0.1; done; echo done"
        client.send_call(5, "execute_in_task", task=task, argv=["sh", "-c", line])
        found = shared_keep.task(task)
        eventually(lambda: (found.workspace / "begun").exists())
        client.close()
    finally:
        settings.write_text(before)
    (running,) = found.running()
    (found.workspace / "go").touch()
    ended = running.wait(60)
    assert ended is not None
    assert (ended.exit_code, ended.stdout.data) == (0, b"done\n")


def test_an_agent_that_was_killed_is_put_in_order_by_others(shared_keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(shared_keep.path, SERVE, shared_keep.path, "lost")
    client.initialize()
    task = client.call("create_task_sandbox", title="lost")["id"]
    token = client.call("attach_agent_to_task", task=task)["token"]
    client.call("execute_in_task", task=task, argv=["true"], token=token)
    worker = client.worker()
    client.process.send_signal(signal.SIGSTOP)  # so that it starts no other
    client.kill_worker()
    client.process.kill()
    client.process.wait()
    client.stdin.close()
    client.stdout.close()
    eventually(lambda: not Path(f"/proc/{worker}").exists())
    assert attendance.tick(shared_keep) == [], "its server may be on its way back"
    monkeypatch.setattr(attendance, "GRACE_SECONDS", 0.0)
    done = attendance.tick(shared_keep)
    assert done[0] == "the agent lost is gone"
    assert [each.label for each in shared_keep.task(task).checkpoints()] == ["when lost left"]
    assert not [each for lock in shared_keep.locks() if lock.task == task for each in lock.holding]
    assert attendance.tick(shared_keep) == []


def test_clients_with_the_token_are_served_by_http_on_the_loopback(shared_keep: Keep) -> None:
    words = ["mcp", "--http", "0", "--keep", str(shared_keep.path), "--agent", "by-http"]
    server = subprocess.Popen([str(SCRIPT), *words], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        address = re.search(r"http://127\.0\.0\.1:\d+/mcp", server.stderr.readline())
        assert address is not None
        url = address[0]
        path = shared_keep.path / "run" / "mcp-token"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        token = path.read_text()

        async def drive() -> None:
            right = {"authorization": f"Bearer {token}"}
            for headers, status in (
                ({}, 401),
                ({"authorization": f"Bearer {token}x"}, 401),
                (right | {"host": "example.org"}, 421),
                (right | {"origin": "https://example.org"}, 403),
            ):
                async with httpx2.AsyncClient(headers=headers) as plain:
                    body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
                    accept = {"accept": "application/json, text/event-stream"}
                    assert (await plain.post(url, json=body, headers=accept)).status_code == status
            async with (
                httpx2.AsyncClient(headers=right, timeout=60) as authorized,
                McpClient(streamable_http_client(url, http_client=authorized)) as client,
            ):
                task = (await call(client, "create_task_sandbox", title="by http"))["id"]
                ran = await call(client, "execute_in_task", task=task, argv=["echo", "hello"])
                assert ran["stdout"] == "hello\n"
                result = await client.call_tool("show_task", {"task": "ffffffff"})
                assert (result.meta or {})["sandkeep/code"] == "task-not-found"

        asyncio.run(asyncio.wait_for(drive(), 60))
    finally:
        server.terminate()
        assert server.wait(60) == 0
        assert server.stderr is not None
        server.stderr.close()
