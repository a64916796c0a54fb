"""A tour through the tools: what an agent does with a task, until each tool has been used once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from sandkeep.events.catalogue import Rule
from sandkeep.sandboxes import Keep

Use = Callable[..., Awaitable[Any]]


async def tour(use: Use, keep: Keep, task: str, title: str) -> None:
    """Use each tool that was not needed before on the task, which has been worked on and has a checkpoint."""
    await background(use, task)
    await record(use, task, title)
    await conflict(use, keep, task)
    await own_workspace(use, keep, task)
    await life(use, task)


async def background(use: Use, task: str) -> None:
    """Commands in the background."""
    argv = ["sh", "-c", "echo begun; sleep 600"]
    command = (await use("execute_in_task", task=task, argv=argv, in_background=True))["command"]
    assert [each["command"] for each in (await use("processes", task=task))["result"]] == [command]
    waited = await use("wait_process", task=task, command=command, timeout=0.1)
    assert waited == {"result": None}
    assert (await use("process_output", task=task, command=command))["command"] == command
    assert (await use("stop_process", task=task, command=command))["exit_code"] != 0


async def record(use: Use, task: str, title: str) -> None:
    """What is on record, of the task and of all."""
    await use("record_decision", task=task, text="Keep it", reason="it is small", alternative=["drop it"])
    (decision,) = (await use("task_decisions", task=task))["result"]
    assert decision["alternatives"] == ["drop it"]
    runs = (await use("task_executions", task=task))["result"]
    assert [run["number"] for run in runs] == list(range(1, len(runs) + 1))
    assert (await use("task_executions", task=task, output=1))["stdout"] == "b\n"
    (last,) = (await use("task_history", task=task, types=["DecisionRecorded"], last=1))["result"]
    assert last["data"]["text"] == "Keep it"
    (event,) = (await use("events", after=last["position"] - 1, limit=1))["result"]
    assert event["position"] == last["position"]
    assert (await use("task_stats", task=task))["decisions"] == 1
    assert (await use("tag_task", task=task, add=["toured"]))["tags"] == ["mcp", "toured"]
    assert task in [each["id"] for each in (await use("find_task", words=title.split()))["result"]]
    taken = (await use("list_checkpoints", task=task))["result"]
    assert {"here"} < {each["label"] for each in taken}
    await use("execute_in_task", task=task, argv=["sh", "-c", "echo c >g"])
    differing = (await use("diff", task=task, old=taken[0]["id"], path=["g"]))["result"]
    assert [(each["path"], each["change"]) for each in differing] == [("g", "added")]
    fork = await use("fork_task", task=task, checkpoint=taken[0]["id"], title="the other way")
    assert (await use("show_task", task=fork["id"]))["forked_from"]["task"] == task
    assert (await use("verify"))["ok"]
    assert (await use("doctor"))["findings"]


async def conflict(use: Use, keep: Keep, task: str) -> None:
    """Two agents write to a path that the other has not seen."""
    keep.task(task).execute(["sh", "-c", "echo theirs >note"])
    await use("execute_in_task", task=task, argv=["sh", "-c", "echo ours >note"])
    (found,) = (await use("conflicts", task=task))["result"]
    assert found["path"] == "note"
    assert (await use("resolve_conflict", task=task, conflict=found["id"], take="theirs"))["taken"] == "theirs"
    assert (await use("execute_in_task", task=task, argv=["cat", "note"]))["stdout"] == "theirs\n"


async def own_workspace(use: Use, keep: Keep, task: str) -> None:
    """An agent that works in a workspace of its own, and is gone."""
    keep.conflicts(task).set_rules([Rule("*", "own-workspace")])
    held = await use("attach_agent_to_task", task=task, mode="collaborative", agent="gone")
    ran = await use("execute_in_task", task=task, argv=["sh", "-c", "echo own >h"], token=held["token"])
    assert ran["own_workspace"] != task
    (lock,) = (each for each in (await use("locks"))["result"] if each["task"] == task)
    assert [each["agent"] for each in lock["holding"]] == ["gone"]
    keep.locking.take_away(task, "it is gone")
    assert (await use("merge", task=task))["written"] == 1


async def life(use: Use, task: str) -> None:
    """From the next pause to the end."""
    for tool, state in (
        ("pause_task", "paused"),
        ("resume_task", "active"),
        ("stop_task", "active"),
        ("complete_task", "completed"),
        ("reopen_task", "active"),
        ("complete_task", "completed"),
        ("cleanup_task", "cleaned"),
    ):
        assert (await use(tool, task=task))["state"] == state, tool
