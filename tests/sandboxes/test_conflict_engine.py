"""Two agents that collide in one task, end to end: real sandboxes, the command line, the bus."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandkeep.sandboxes import Keep, Task

from .agents import lines
from .support import Cli, eventually, shell, text

pytestmark = pytest.mark.engine


def execute(cli: Cli, agent: str, task: str, line: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setenv("SANDKEEP_ACTOR", agent)
    answer = cli("execute", task, "--", "sh", "-c", line)
    assert answer.status == 0, answer.stderr
    return answer.stderr


def test_two_agents_collide_and_a_person_settles_it(
    keep: Keep, task: Task, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep.close()
    (task.workspace / "file").write_text(lines())
    assert execute(cli, "ann", task.id, "cat file", monkeypatch) == b""
    assert execute(cli, "bob", task.id, "true", monkeypatch) == b""
    assert execute(cli, "bob", task.id, "echo bob >note", monkeypatch) == b""
    said = execute(cli, "ann", task.id, "echo ann >note", monkeypatch)
    assert said.startswith(b"sandkeep: 1 path changed by bob since you last looked; conflict ")
    (found,) = cli("conflicts", task.id, "--json").json
    assert [found[name] for name in ("kind", "path", "agents", "others")] == ["same-region", "note", ["ann"], ["bob"]]
    assert found["id"].encode() in cli("conflicts", task.id).stdout
    document = cli("execute", task.id, "--json", "--", "cat", "note").json
    assert (document["stdout"], document["news"]["conflicts"][0]["id"]) == ("ann\n", found["id"])
    done = cli("resolve-conflict", task.id, found["id"], "--take", "theirs", "--json").json
    assert done["taken"] == "theirs"
    assert cli("execute", task.id, "--json", "--", "cat", "note").json["stdout"] == "bob\n"
    assert cli("conflicts", task.id, "--json").json == []
    assert len(cli("conflicts", task.id, "--all", "--json").json) == 1
    cli("resolve-conflict", task.id, found["id"], "--take", "ours").refused("conflict-refused", 1)
    cli("resolve-conflict", task.id, "0" * 12, "--take", "ours").refused("conflict-not-found", 2)
    rules = cli("conflict-policy", task.id, "*.lock=ask", "a=b=reject", "--json").json
    assert rules == [{"pattern": "*.lock", "strategy": "ask"}, {"pattern": "a=b", "strategy": "reject"}]
    assert cli("conflict-policy", task.id).stdout == b"*.lock=ask\na=b=reject\n"
    cli("conflict-policy", task.id, "nothing").refused("bad-input", 2)
    assert cli("verify", "--json").json["ok"]
    assert cli("replay", "--json").json["ok"]


def test_the_agent_that_ends_last_collides_with_the_one_beside_it(keep: Keep, task: Task) -> None:
    told = threading.Event()
    keep.conflicts(task.id).live().subscribe(lambda record: told.set())
    shell(task, "seq 9 >file")
    keep.conflicts(task.id).set_rules([])
    with ThreadPoolExecutor(1) as pool:
        keep.actor = "ann"
        slow = "cp file old; touch begun; while ! [ -e go ]; do sleep 0.05; done; sed s/8/ann/ old >file"
        ann = pool.submit(task.execute, ["sh", "-c", slow], timeout=120)
        eventually((task.workspace / "begun").exists)
        keep.actor = "bob"
        shell(task, "sed -i s/2/bob/ file")
        keep.actor = "ann"
        (task.workspace / "go").touch()
        result = ann.result()
    assert text(result) == ""
    assert shell(task, "cat file") == "1\nbob\n3\n4\n5\n6\n7\nann\n9\n"
    assert result.news is not None
    (found,) = result.news.conflicts
    assert (found.kind, found.path, found.taken, found.others) == ("same-file", "file", "merged", ("bob",))
    assert told.wait(30)
