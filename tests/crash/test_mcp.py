"""The MCP server, its worker killed at random moments of mixed calls: each ends in one effect or in an error that says
so, and none hangs."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sandkeep.events import catalogue as ev
from sandkeep.events.verify import verify
from sandkeep.sandboxes import Keep

from ..sandboxes.mcp_client import Client
from .support import LONG

pytestmark = pytest.mark.engine

SERVE = Path(__file__).parents[1] / "sandboxes" / "mcp_serve.py"
KILLS = 500 if LONG else 8
AGENTS, TURNS = (10, 10) if LONG else (3, 2)
CLEAN = {"call-interrupted", "task-busy", "lock-held", "deadlock", "stale-fence", "task-refused", "sandbox-gone"}
"""What may be told of a call whose server was killed, or of its neighbours."""


@pytest.fixture
def client(shared_keep: Keep) -> Iterator[Client]:
    made = Client(shared_keep.path, SERVE, shared_keep.path, "killed")
    made.initialize()
    yield made
    made.close()
    shared_keep.engine.containers(shared_keep.id)  # so that they are removed with the keep


class Calls:
    """Calls under way: what each should have done once, and was told to have done."""

    def __init__(self, client: Client, task: str, lockable: str) -> None:
        self.client, self.task, self.lockable = client, task, lockable
        self.kinds: dict[int, str] = {}
        self.done: dict[int, Any] = {}
        self.errors: Counter[str] = Counter()

    def send(self, number: int, kind: str) -> None:
        self.kinds[number] = kind
        name = f"call-{number}"
        match kind:
            case "create":
                self.client.send_call(number, "create_task_sandbox", title=name)
            case "execute":
                script = f"echo {name} >>ran; sleep 0.2; echo {name}"
                self.client.send_call(number, "execute_in_task", task=self.task, argv=["sh", "-c", script])
            case "checkpoint":
                self.client.send_call(number, "checkpoint", task=self.task, label=name)
            case "attach":
                self.client.send_call(number, "attach_agent_to_task", task=self.lockable, timeout=0.0, agent=name)
            case _:
                self.client.send_call(number, "list_tasks", limit=1)

    def take(self, number: int) -> None:
        """Wait for the answer."""
        answer = self.client.answer(number)
        if "error" in answer:
            assert answer["error"]["data"]["code"] == "server-crashed", answer
            self.errors["server-crashed"] += 1
            return
        result = answer["result"]
        if result.get("isError"):
            code = result["_meta"]["sandkeep/code"]
            assert code in CLEAN, result
            self.errors[code] += 1
            return
        self.done[number] = result["structuredContent"]
        if self.kinds[number] == "execute":
            assert self.done[number]["stdout"] in (f"call-{number}\n", ""), "not what this command printed"
            if self.done[number]["exit_code"] == 0:
                assert self.done[number]["stdout"] == f"call-{number}\n"
        if self.kinds[number] == "attach":
            arguments = {"task": self.lockable, "token": self.done[number]["token"]}
            self.client.call("detach_agent_from_task", **arguments)


def test_a_worker_killed_at_any_moment_does_nothing_twice(shared_keep: Keep, client: Client) -> None:
    chosen = random.Random(7)
    task = client.call("create_task_sandbox", title="killed")["id"]
    lockable = client.call("create_task_sandbox", title="locked")["id"]
    client.call("execute_in_task", task=task, argv=["true"])
    calls, number = Calls(client, task, lockable), 0
    kinds = ("execute", "execute", "create", "checkpoint", "attach", "list")
    for _ in range(KILLS):
        sent = []
        for kind in chosen.sample(kinds, chosen.choice((1, 2, 3))):
            number += 1
            calls.send(number, kind)
            sent.append(number)
        time.sleep(chosen.choice((0.0, 0.02, 0.05, 0.1, 0.2, 0.4)) * chosen.random())
        client.kill_worker()
        for each in sent:
            calls.take(each)
    ran = Counter((shared_keep.task(task).workspace / "ran").read_text().split())
    records = list(shared_keep.events())
    created = Counter(event.title for record in records if isinstance(event := record.event, ev.TaskCreated))
    taken = Counter(event.label for record in records if isinstance(event := record.event, ev.CheckpointCreated))
    asked = Counter(
        event.argv[-1].split()[1] for record in records if isinstance(event := record.event, ev.CommandRequested)
        if event.argv[0] == "sh"
    )  # fmt: skip
    for each, kind in calls.kinds.items():
        effects = {"create": created, "execute": ran, "checkpoint": taken}.get(kind, Counter())[f"call-{each}"]
        assert effects <= 1, (kind, each)
        if each in calls.done and kind in ("create", "checkpoint"):
            assert effects == 1, (kind, each)
        if kind == "execute":
            assert asked[f"call-{each}"] <= 1
            if each in calls.done and calls.done[each]["exit_code"] == 0:
                assert effects == 1
    assert len(calls.done) > len(calls.kinds) * 0.6, calls.errors
    assert sum(calls.errors.values()) + len(calls.done) == len(calls.kinds)
    shared_keep.reconcile(again=True)
    assert not shared_keep.task(task).state.pending
    assert verify(shared_keep.path / "log").ok


def test_agents_each_with_a_server_of_its_own_take_turns_on_one_keep(shared_keep: Keep, client: Client) -> None:
    task = client.call("create_task_sandbox", title="shared")["id"]
    client.call("execute_in_task", task=task, argv=["sh", "-c", "echo 0 >count"])
    # What is read is written back a moment later: a turn that is not alone would be lost.
    turn = ["sh", "-c", "read n <count; sleep 0.05; echo $((n + 1)) >count"]

    def work(number: int) -> None:
        agent = Client(shared_keep.path, SERVE, shared_keep.path, f"agent-{number}")
        try:
            agent.initialize()
            own = agent.call("create_task_sandbox", title=f"of {number}")["id"]
            for _ in range(TURNS):
                token = agent.call("attach_agent_to_task", task=task, timeout=300.0)["token"]
                ran = agent.call("execute_in_task", task=task, argv=turn, token=token)
                assert ran["exit_code"] == 0
                agent.call("detach_agent_from_task", task=task, token=token)
            assert agent.call("show_task", task=own)["owner"] == f"agent-{number}"
        finally:
            agent.close()

    with ThreadPoolExecutor(AGENTS) as pool:
        list(pool.map(work, range(AGENTS)))
    assert (shared_keep.task(task).workspace / "count").read_text() == f"{AGENTS * TURNS}\n"
    assert {each.owner for each in shared_keep.tasks()} >= {f"agent-{number}" for number in range(AGENTS)}
