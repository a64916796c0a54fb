"""The front of the MCP server, before a worker that crashes, hangs and floods as it is told to."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandkeep.sandboxes.mcp_lines import said

from .mcp_client import PATIENCE, Client

FAKE = Path(__file__).with_name("mcp_fake.py")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    made = Client(tmp_path, FAKE, "front", tmp_path)
    try:
        yield made
    finally:
        made.process.send_signal(signal.SIGTERM)
        made.close()


def test_every_request_has_a_key_of_its_own_that_no_client_can_choose(client: Client) -> None:
    client.send(id=1, method="echo", params={"_meta": {"sandkeep/key": "mine", "sandkeep/again": True, "other": 1}})
    client.send(id="1", method="echo")
    first, second = client.answer(1)["result"]["meta"], client.answer("1")["result"]["meta"]
    assert first["other"] == 1
    assert "sandkeep/again" not in first
    assert "mine" != first["sandkeep/key"] != second["sandkeep/key"]


def test_a_result_is_told_from_all_else_that_a_worker_says_without_being_read() -> None:
    for line in (
        b'{"jsonrpc":"2.0","id":7,"result":{"content":[]}}',
        b'{"jsonrpc":"2.0","id":"a b","result":{"result":[1,{"id":8}]}}',
        b'{"jsonrpc":"2.0","id":"w\\u00e9","result":{"method":"x"}}',
        b'{"jsonrpc":"2.0","id":7,"error":{"code":1,"message":"result"}}',
        b'{"jsonrpc":"2.0","id":7,"method":"elicitation/create","params":{"result":{}}}',
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"id":7,"result":{}}}',
    ):
        whole: Any = json.loads(line)
        heard: Any = said(line)
        assert [heard.get(each) for each in ("id", "method", "error")] == [
            whole.get(each) for each in ("id", "method", "error")
        ]
        assert ("result" in heard) == ("result" in whole)
    with pytest.raises(ValueError, match="Unterminated"):
        said(b'{"jsonrpc":"2.0","id":7,"resul')


def test_a_request_that_a_worker_died_with_is_given_to_the_next_one(client: Client) -> None:
    client.send(id=1, method="initialize", params={"clientInfo": {"name": "test"}})
    client.answer(1)
    client.send(method="notifications/initialized")
    client.send(id=2, method="resources/subscribe", params={"uri": "a:b"})
    client.send(id=3, method="resources/subscribe", params={"uri": "a:c"})
    client.send(id=4, method="resources/unsubscribe", params={"uri": "a:c"})
    client.answer(4)
    client.send(id=5, method="crash", params={"_meta": {"progressToken": "t"}})
    told = [client.read() for _ in range(4)]
    assert [each["params"]["progress"] for each in told if each.get("method") == "notifications/progress"] == [5, 7]
    assert [each["params"]["uri"] for each in told if "uri" in each.get("params", {})] == ["a:b"]
    result = told[-1]["result"]
    assert result["worker"] == 2
    assert result["meta"]["sandkeep/again"] is True
    assert result["meta"]["sandkeep/since"] == 10
    sent = given(client)
    again = sent[[each["method"] for each in sent].index("crash") + 1 :]
    assert [each["method"] for each in again] == [
        *("initialize", "notifications/initialized", "resources/subscribe", "crash"),
    ]
    assert sent[-1]["params"]["_meta"]["sandkeep/key"] == sent[-5]["params"]["_meta"]["sandkeep/key"]
    client.send(id=6, method="echo")
    assert client.read()["id"] == 6, "an answer was not for the client"


def test_a_worker_that_hangs_is_ended_and_one_that_nobody_reads_is_not(client: Client) -> None:
    client.send(id=1, method="hang")
    assert client.answer(1)["result"]["worker"] == 2
    client.send(id=2, method="large", params={"size": 12 << 20})
    time.sleep(3)  # longer than the front is patient with a worker
    assert len(client.answer(2)["result"]["text"]) == 12 << 20
    assert len(starts(client)) == 2


def test_what_crashes_every_worker_is_given_up_and_the_circuit_opens_and_closes(client: Client) -> None:
    client.send(id=1, method="never")
    client.send(id=2, method="crash", params={"always": True})
    gone = client.answer(2)["error"]
    assert gone["data"]["code"] == "server-crashed"
    assert "crashed 3 times" in gone["message"]
    assert client.answer(1)["error"]["data"]["tries"] == 3, "it was under way each time"
    client.send(id=5, method="echo")
    client.answer(5)
    (client.folder / "broken").touch()
    os.kill(int(starts(client)[-1]), signal.SIGKILL)
    client.send(id=3, method="echo")
    assert "again and again" in client.answer(3)["error"]["message"]
    begun = time.monotonic()
    client.send(id=4, method="echo")
    assert client.answer(4)["error"]["code"] == -32004
    assert time.monotonic() - begun < PATIENCE / 2
    (client.folder / "broken").unlink()
    until, number = time.monotonic() + PATIENCE, 10
    while time.monotonic() < until:
        client.send(id=number, method="echo")
        if "result" in client.answer(number):
            break
        number += 1
        time.sleep(0.2)
    else:
        pytest.fail("it never recovered")


def test_what_is_no_message_is_refused_and_the_server_lives(client: Client) -> None:
    for line, code in (
        (b"nonsense", -32700),
        (b'{"id": \xff}', -32700),
        (b"[" * 100_000, -32700),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "echo", "params": {"x": 1e999}}', -32700),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "echo", "params": {"x": NaN}}', -32700),
        (b"[]", -32600),
        (b'{"jsonrpc": "2.0", "id": true, "method": "echo"}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1.5, "method": "echo"}', -32600),
        (b'{"id": null, "method": "echo", "jsonrpc": "2.0"}', -32600),
    ):
        client.write(line)
        told = client.read()
        assert (told["id"], told["error"]["code"]) == (None, code), line[:80]
    for line, code in (
        (b'{"id": 7, "method": "echo"}', -32600),
        (b'{"jsonrpc": "2.0", "id": 7, "method": 3}', -32600),
        (b'{"jsonrpc": "2.0", "id": 7, "method": "echo", "params": []}', -32602),
        (b'{"jsonrpc": "2.0", "id": 7, "method": "echo", "params": {"_meta": 1}}', -32602),
        (b'{"jsonrpc": "2.0", "id": 7, "method": "sandkeep/ping"}', -32601),
        (b'{"jsonrpc": "2.0", "id": 7, "method": "echo", "params": {"x": "\\ud800"}}', -32600),
    ):
        client.write(line)
        told = client.read()
        assert (told["id"], told["error"]["code"]) == (7, code), line
    client.send(id=8, method="echo")
    assert client.answer(8)["result"]["worker"] == 1


def test_what_is_too_large_is_refused_by_its_id_without_being_held(client: Client) -> None:
    client.send(id=1, method="echo")
    client.answer(1)
    before = _resident(client.process.pid)
    block = b"x" * (1 << 20)
    for head, tail in (
        (b'{"jsonrpc":"2.0","id":"large","method":"echo","params":{"x":"', b'"}}'),
        (b'{"method":"echo","params":{"id":4,"x":"', b'"},"jsonrpc":"2.0","id":"large"}'),
    ):
        client.stdin.write(head)
        for _ in range(60):
            _write_all(client.stdin.fileno(), block)
        client.write(tail)
        told = client.read()
        assert (told["id"], told["error"]["code"]) == ("large", -32600)
    assert _resident(client.process.pid) - before < 48 << 20
    client.send(id=1, method="echo", params={"x": "x" * (10 << 20)})
    assert client.answer(1)["result"]["worker"] == 1


def test_a_client_that_never_reads_is_not_heard_for_ever(client: Client) -> None:
    client.send(id=1, method="echo")
    client.answer(1)
    before = _resident(client.process.pid)
    line = b'{"jsonrpc": "2.0", "id": 1, "method": "large", "params": {"size": 100000}}\n'
    os.set_blocking(client.stdin.fileno(), False)
    taken, idle = 0, 0
    while idle < 10:
        try:
            taken += os.write(client.stdin.fileno(), b"nonsense\n" * 100 + line)
            idle = 0
        except BlockingIOError:
            idle += 1
            time.sleep(0.1)
    assert taken < 20 << 20
    assert _resident(client.process.pid) - before < 64 << 20
    os.set_blocking(client.stdin.fileno(), True)


def test_an_answer_to_a_dead_worker_is_not_taken_for_one_to_the_next(client: Client) -> None:
    client.send(id=1, method="ask")
    asked = client.read()
    assert asked["method"] == "elicitation/create"
    client.send(id=2, method="crash")
    while (told := client.read()).get("method") != "notifications/cancelled":
        continue
    assert told["params"]["requestId"] == asked["id"]
    while (again := client.read()).get("method") != "elicitation/create":
        continue
    assert again["id"] != asked["id"]
    client.answer(2)
    client.send(id=asked["id"], result={"action": "accept"})
    client.send(id=again["id"], result={"action": "decline"})
    client.send(id=3, method="echo")
    client.answer(3)
    answers = [each for each in given(client) if "result" in each]
    assert [each["result"]["action"] for each in answers] == ["decline"]
    assert answers[0]["id"] == 1, "the worker's own id"


def test_what_was_cancelled_is_not_done_again(client: Client) -> None:
    client.send(id=1, method="never")
    client.send(method="notifications/cancelled", params={"requestId": 1})
    client.send(method="notifications/cancelled", params={"requestId": 9})
    client.send(id=2, method="crash")
    client.answer(2)
    sent = given(client)
    assert [each["method"] for each in sent].count("never") == 1
    assert [each["params"]["requestId"] for each in sent if each["method"] == "notifications/cancelled"] == [1]


def test_who_has_said_all_is_still_answered_and_the_worker_ends_in_order(client: Client) -> None:
    client.send(id=1, method="echo")
    client.stdin.close()
    assert client.answer(1)["result"]["worker"] == 1
    assert client.process.wait(PATIENCE) == 0
    assert (client.folder / "ended").exists()


def test_a_worker_outlives_a_front_that_was_killed_to_put_its_things_in_order(tmp_path: Path) -> None:
    client = Client(tmp_path, FAKE, "front", tmp_path)
    client.send(id=1, method="echo")
    client.answer(1)
    client.process.kill()
    client.process.wait()
    until = time.monotonic() + PATIENCE
    while not (tmp_path / "ended").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    client.stdin.close()
    client.stdout.close()
    worker = int((tmp_path / "starts").read_text())
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < until
        time.sleep(0.05)


def starts(client: Client) -> list[str]:
    """The processes that were started as workers."""
    return (client.folder / "starts").read_text().split()


def given(client: Client) -> list[dict[str, Any]]:
    """What all workers were given."""
    return [json.loads(line) for line in (client.folder / "given").read_text().splitlines()]


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) * 1024
