"""Intents are held by a lock that ends with the process, whatever ends it."""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandkeep.sandboxes.intent import abandoned, attempted, exclusive, held, inherited, taken_over

from .support import eventually

HOLD = """
import sys, time
from pathlib import Path
from sandkeep.sandboxes.intent import held
with held(Path(sys.argv[1])) as intent:
    print(intent, flush=True)
    time.sleep(600)
"""


def test_an_intent_is_held_until_the_end_of_its_block(tmp_path: Path) -> None:
    with held(tmp_path) as one, held(tmp_path) as two:
        assert one != two
        assert not abandoned(tmp_path, one)
        assert not abandoned(tmp_path, two)
    assert abandoned(tmp_path, one)
    assert list(tmp_path.iterdir()) == []


def test_an_intent_is_let_go_by_what_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), held(tmp_path) as intent:
        raise KeyboardInterrupt
    assert abandoned(tmp_path, intent)


def test_an_intent_nobody_ever_held_is_abandoned(tmp_path: Path) -> None:
    assert abandoned(tmp_path, "0" * 16)


def test_an_intent_is_abandoned_as_soon_as_its_process_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-P", "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        intent = process.stdout.readline().strip()
        assert not abandoned(tmp_path, intent)
        process.kill()
        process.wait()
        assert (tmp_path / intent).exists()
        assert abandoned(tmp_path, intent)


def test_an_intent_is_held_by_a_program_that_does_a_part_of_it(tmp_path: Path) -> None:
    hold = HOLD.replace("time.sleep(600)", "subprocess.run(['cat'], pass_fds=inherited())").replace(
        "import held", "import held, inherited; import subprocess"
    )
    command = [sys.executable, "-P", "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        intent = process.stdout.readline().strip()
        process.stdin.write("x")
        process.stdin.flush()
        assert process.stdout.read(1) == "x"
        process.kill()
        process.wait()
        assert not abandoned(tmp_path, intent)
        process.stdin.close()
        assert process.stdout.read() == ""
    eventually(lambda: abandoned(tmp_path, intent))
    assert inherited() == ()


def test_what_is_inherited_is_held_in_whatever_order_blocks_end(tmp_path: Path) -> None:
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(held(tmp_path))
    (outer,) = inherited()
    second.enter_context(held(tmp_path))
    assert len(inherited()) == 2
    first.close()
    (inner,) = inherited()
    assert inner != outer
    ended = threading.Thread(target=second.close)
    ended.start()
    ended.join()
    assert inherited() == ()


def test_looking_at_an_intent_does_not_take_it_away(tmp_path: Path) -> None:
    (tmp_path / "left").touch()
    assert abandoned(tmp_path, "left")
    assert abandoned(tmp_path, "left")


def test_a_lock_file_is_held_alone_until_the_end_of_its_block(tmp_path: Path) -> None:
    path = tmp_path / "lock"

    def free() -> bool:
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    with exclusive(path):
        assert not free()
    assert free()
    with pytest.raises(ValueError, match="inside"), exclusive(path):
        raise ValueError("inside")
    assert free()


def test_a_lock_file_that_its_holder_removes_is_still_held_alone(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "lock", [0], [0]

    def take(number: int) -> None:
        for turn in range(200):
            with exclusive(path):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0)
                inside[0] -= 1
                if (turn + number) % 2:
                    path.unlink()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(take, range(4)))
    assert most == [1]
    with exclusive(path):
        path.unlink(missing_ok=True)
        with attempted(path) as mine:  # a new one
            assert mine
            with attempted(path) as again:
                assert not again


def test_what_the_block_misses_is_not_taken_for_the_lock_file(tmp_path: Path) -> None:
    for lock in (exclusive, attempted):
        with pytest.raises(FileNotFoundError, match="nowhere"), lock(tmp_path / "lock"):
            (tmp_path / "nowhere").read_bytes()


def test_an_intent_is_taken_over_once_nobody_holds_it(tmp_path: Path) -> None:
    with held(tmp_path) as alive, taken_over(tmp_path, alive) as mine:
        assert not mine
    with taken_over(tmp_path, alive) as mine:
        assert not mine, "it is settled"
    (tmp_path / "dead").touch()
    with taken_over(tmp_path, "dead") as mine:
        assert mine
        assert not abandoned(tmp_path, "dead")
        with taken_over(tmp_path, "dead") as again:
            assert not again
    assert list(tmp_path.iterdir()) == []
