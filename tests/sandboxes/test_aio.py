"""The library for asyncio, on a real engine: what goes on side by side, and what becomes of what is cancelled."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from sandkeep.events.catalogue import CommandExecuted
from sandkeep.sandboxes import AsyncHeld, AsyncKeep, AsyncRunning, AsyncTask, Held, Keep, Running, Task
from sandkeep.sandboxes.errors import Deadlock, KeepNotFound, LockHeld

from .support import eventually

PATIENCE = 30.0

BY_SYNC = {
    Keep: {
        *("as_of", "attempting", "audit_key", "bus", "caches", "checkpoints", "conflicts", "decide"),
        *("engine", "growth", "images", "locking", "network", "own_workspaces", "resources", "steward"),
        *("subscription", "trailing", "working"),
    },
    Task: {"abandon", "create", "line", "rebuild_memory", "rest", "sandbox", "terminal", "workspace"},
    Running: {"request"},
    Held: set[str](),
}


def alone(path: Path, drive: Callable[[AsyncKeep], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Drive a new keep in an event loop."""

    async def run() -> None:
        async with await AsyncKeep.init(path / "keep", **options) as keep, asyncio.timeout(PATIENCE):
            await drive(keep)

    asyncio.run(run())


async def soon(look: Callable[[], object]) -> None:
    """Wait in a thread until it holds."""
    await asyncio.to_thread(eventually, look)


@pytest.mark.parametrize(
    ("sync", "facade"), [(Keep, AsyncKeep), (Task, AsyncTask), (Running, AsyncRunning), (Held, AsyncHeld)]
)
def test_whatever_can_be_done_can_be_awaited_or_is_left_to_sync_on_purpose(sync: type, facade: type) -> None:
    public = {name for name in dir(sync) if not name.startswith("_")}
    offered = {name for name in dir(facade) if not name.startswith("_")}
    assert public - offered == BY_SYNC[sync]


@pytest.mark.engine
def test_commands_run_side_by_side_while_the_loop_goes_on_and_what_is_cancelled_is_ended(tmp_path: Path) -> None:
    async def drive(keep: AsyncKeep) -> None:
        task = await keep.create_task("by asyncio")
        assert inspect.signature(task.execute) == inspect.signature(task.sync.execute)
        wait = 'touch "$0"; until test -e "$1"; do sleep 0.05; done'
        both = (task.execute(["sh", "-c", wait, *names], timeout=60) for names in (("a", "b"), ("b", "a")))
        assert [result.exit_code for result in await asyncio.gather(*both)] == [0, 0]

        begun = threading.Event()
        script = "sleep 1000 & echo $!; wait"
        running = asyncio.create_task(
            task.execute(["sh", "-c", script], timeout=PATIENCE, on_output=lambda name, data: begun.set())
        )
        await soon(begun.is_set)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        last = [record.event for record in await task.history()][-1]
        assert isinstance(last, CommandExecuted)
        assert last.reason == "stopped"
        alive = await task.execute(["sh", "-c", f"kill -0 {(last.stdout.data or b'').decode().strip()}"])
        assert alive.exit_code != 0, "what it had started lives on"

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await task.execute(["sleep", "1000"], timeout=PATIENCE)
        left = await task.start(["sleep", "1000"])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(left.wait(), 0.2)
        assert [each.id for each in await task.running()] == [left.id], "to wait no more ends nothing"
        assert (await left.stop()).exit_code != 0
        await task.complete()
        await task.clean_up()

    alone(tmp_path, drive)


def test_what_waits_long_keeps_nothing_else_from_being_done(tmp_path: Path) -> None:
    async def drive(keep: AsyncKeep) -> None:
        task = await keep.create_task("busy")
        async with await task.lock() as held:
            waiting = [asyncio.create_task(task.lock(session=str(number), timeout=PATIENCE)) for number in range(3)]
            await soon(lambda: len(list(keep.sync.locks()[0].waiting)) >= 1)
            assert [each.id for each in await keep.tasks()] == [(await task.state()).id] == [task.id]
            assert (await held.task()).id == task.id
            for each in waiting:
                each.cancel()
            assert [type(end) for end in await asyncio.gather(*waiting, return_exceptions=True)] == [
                asyncio.CancelledError
            ] * 3
            assert not keep.sync.locks()[0].waiting, "who was cancelled waits on"
        assert not await keep.locks()

    alone(tmp_path, drive, threads=1)


def test_who_waits_for_a_lock_is_the_asyncio_task_and_not_its_thread(tmp_path: Path) -> None:
    async def drive(keep: AsyncKeep) -> None:
        one, other = await keep.create_task("one"), await keep.create_task("other")
        crossed = asyncio.Event()

        async def take() -> None:
            async with await other.lock():
                with pytest.raises(LockHeld):
                    await one.lock(timeout=0.1)
                crossed.set()
                await (await one.lock()).release()

        async with await one.lock():
            taking = asyncio.create_task(take())
            await crossed.wait()
            await soon(lambda: any(lock.waiting for lock in keep.sync.locks()))
            with pytest.raises(Deadlock):
                await other.lock()
        await taking

    alone(tmp_path, drive, threads=2)


def test_events_are_read_when_they_are_asked_for_and_followed(tmp_path: Path) -> None:
    async def drive(keep: AsyncKeep) -> None:
        for number in range(3):
            await keep.create_task(f"task {number}")
        head = (await keep.head()).position
        assert [record.position async for record in keep.events()] == list(range(1, head + 1))
        followed = keep.events(head, follow=True)
        coming = asyncio.ensure_future(anext(followed))
        task = await keep.create_task("another")
        assert (await asyncio.wait_for(coming, 30)).stream == f"task/{task.id}"
        for number in range(300):  # more than a page
            await task.tag(add=[f"tag-{number % 10}"]) if number % 2 else await task.tag(remove=[f"tag-{number % 10}"])
        end = (await keep.head()).position
        positions = [head + 1]
        async for record in followed:
            positions.append(record.position)
            if record.position == end:
                break
        assert positions == list(range(head + 1, end + 1))
        await followed.aclose()

    alone(tmp_path, drive)


def test_to_close_ends_what_waits_and_errors_are_those_of_the_library(tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(KeepNotFound):
            await AsyncKeep.open(tmp_path / "none")
        keep = await AsyncKeep.init(tmp_path / "keep")
        task = await keep.create_task("held")
        held = await task.lock()
        waiting = asyncio.create_task(task.lock(session="another", timeout=PATIENCE))
        await soon(lambda: keep.sync.locks()[0].waiting)
        begun = time.monotonic()
        await keep.close()
        with pytest.raises(LockHeld):
            await waiting
        assert time.monotonic() - begun < PATIENCE / 2, "it waited until its own time was up"
        assert held.token > 0
        with pytest.raises(RuntimeError):
            await keep.tasks()

    asyncio.run(run())
    assert not [each.name for each in threading.enumerate() if each.name.startswith("sandkeep")]
