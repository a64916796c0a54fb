"""Real processes that share locks, are stopped past their leases and go on, or are killed; what they did is judged.

The history is what each process wrote down, and the log. Under fencing it must hold that what stands in the log under
an exclusive token lies between the grant of that token and its end, whoever stood still in between; that every write
that was acknowledged is there once, where it was said to be; and that nobody who lived was left waiting.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sandkeep.events import Event, Record
from sandkeep.events import catalogue as ev
from sandkeep.projections import registry
from sandkeep.sandboxes import Keep

from .support import LONG

SECONDS = 60.0 if LONG else 6.0
PROCESSES = 50 if LONG else 10
LEASE = 1.0
TASKS = [f"{number:012x}" for number in range(1, 11 if LONG else 4)]
WORKER = Path(__file__).with_name("lock_worker.py")
PATIENCE = 120.0


def make(path: Path) -> None:
    with Keep.init(path) as keep:
        for task in TASKS:
            events: list[Event] = [ev.TaskCreated("i", "shared", None, "image"), ev.WorkspacePrepared("i", None)]
            keep.log.append(registry.STREAM + task, events, actor="tester")


def start(path: Path, name: str) -> subprocess.Popen[bytes]:
    arguments = [str(path), name, ",".join(TASKS), str(LEASE)]
    return subprocess.Popen([sys.executable, "-P", WORKER, *arguments])


def told(folder: Path, name: str) -> list[dict[str, Any]]:
    """What a process wrote down, save for a line that it was killed in."""
    lines = (folder / name).read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def disturb(running: dict[str, subprocess.Popen[bytes]], history: Path) -> tuple[int, set[str]]:
    """Stop processes past their lease and let them go on, and kill a few; how many were stopped, and who was killed.

    It goes on until one that was stopped as a holder has found that it is none any more.
    """
    deadline = time.monotonic() + PATIENCE
    while not all((history / name).exists() and told(history, name) for name in running):
        assert time.monotonic() < deadline, "a process did not begin"
        time.sleep(0.05)
    stopped, killed = 0, set[str]()
    begun = time.monotonic()
    while time.monotonic() < begun + SECONDS or not any("lost" in last(history, name, 1000) for name in running):
        assert time.monotonic() < begun + SECONDS + PATIENCE, "nobody lost a lock"
        alive = sorted(set(running) - killed)
        name = random.choice(alive)
        if len(killed) < PROCESSES // 5 and random.random() < 0.2:
            running[name].kill()
            killed.add(name)
            continue
        # Rather one that holds a lock: it is to go on in the belief that it still does.
        name = next((each for each in alive if last(history, each, 1) & {"held", "wrote"}), name)
        running[name].send_signal(signal.SIGSTOP)
        time.sleep(LEASE * random.uniform(0.2, 2))
        running[name].send_signal(signal.SIGCONT)
        stopped += 1
    return stopped, killed


def last(history: Path, name: str, count: int) -> set[str]:
    """What the last lines of a process tell of."""
    return {line["what"] for line in told(history, name)[-count:]}


def judge(records: list[Record], acknowledged: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Walk through the log with the simplest idea of a lock there is; what was found, counted."""
    live: dict[str, dict[str, tuple[int, str]]] = {task: {} for task in TASKS}  # task -> claim -> token and mode
    places: dict[str, int] = {}
    counts = {"grants": 0, "expired": 0, "writes": 0}
    for record in records:
        task = record.stream.partition("/")[2]
        match record.event:
            case ev.LockGranted(claim=claim, mode=mode):
                others = [other for _, other in live[task].values()]
                assert not others if mode == "exclusive" else "exclusive" not in others
                live[task][claim] = (record.position, mode)
                counts["grants"] += 1
            case ev.LockReleased(claim=claim):
                del live[task][claim]
            case ev.LockExpired(claim=claim):
                counts["expired"] += claim in live[task]
                live[task].pop(claim, None)
            case ev.TaskCompleted(summary=word):
                assert word not in places, f"{word} is there twice"
                places[word] = record.position
                counts["writes"] += 1
                if word in acknowledged:
                    tokens = [token for token, _ in live[task].values()]
                    assert acknowledged[word][1] in tokens, f"{word} was written under a token that was not live"
                else:
                    assert live[task], f"{word} was written while nobody held the lock"
    assert {word: places.get(word) for word in acknowledged} == {word: at for word, (at, _) in acknowledged.items()}
    return counts


def test_mutual_exclusion_holds_whoever_is_stopped_or_killed(tmp_path: Path) -> None:
    path, history = tmp_path / "keep", tmp_path / "history"
    history.mkdir()
    make(path)
    running = {f"agent-{number}": start(path, f"agent-{number}") for number in range(PROCESSES)}
    try:
        stopped, killed = disturb(running, history)
        (tmp_path / "end").touch()
        for name, process in running.items():
            status = process.wait(PATIENCE)
            assert status == (-signal.SIGKILL if name in killed else 0), f"{name} ended with {status}"
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    stories = {name: told(history, name) for name in running}
    lines = [line for story in stories.values() for line in story]
    acknowledged = {line["word"]: (line["position"], line["token"]) for line in lines if line["what"] == "wrote"}
    with Keep.open(path, actor="judge") as keep:
        counts = judge(list(keep.events()), acknowledged)
        assert keep.replay().same
        for task in TASKS:  # nobody is left who could hold it but the dead, and they lapse
            keep.task(task).lock(timeout=PATIENCE).release()
    assert counts["writes"] >= len(acknowledged) > PROCESSES
    assert counts["expired"] > 0, "nobody was stopped long enough: nothing was shown"
    assert stopped > 2
    assert [line for line in lines if line["what"] == "lost"] != []
    for name, story in stories.items():
        assert name in killed or story[-1]["what"] == "end"
