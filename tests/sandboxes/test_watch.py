"""Watching a keep: what is seen of it, how it fits a screen, and a real terminal that shows it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import termios
import time
from pathlib import Path

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from sandkeep.sandboxes import Keep, show_watch, watch
from sandkeep.sandboxes.cgroup import Sample
from sandkeep.sandboxes.watch import Picture, Used

from .support import DEADLINE_SECONDS, SCRIPT, Cli, eventually


def drawn(picture: Picture, width: int, height: int) -> list[str]:
    """The lines of a frame."""
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None, highlight=False)
    console.print(show_watch.frame(picture, width, height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.fixture
def picture(keep: Keep) -> Picture:
    """A keep in which something goes on: tasks, of which one has a hostile title, agents, and events."""
    for number in range(8):
        keep.create_task(f"task number {number}")
    task = keep.create_task("漢字 [bold]not markup[/bold] " + "long " * 20)
    keep.locking.acquire(task.id, agent="fixer").release()
    holder = keep.locking.acquire(task.id, agent="holder")
    found = watch.look(keep)
    holder.release()
    return found


def test_a_picture_has_what_goes_on(keep: Keep, picture: Picture) -> None:
    assert [task.title for task in picture.tasks[1:]] == [f"task number {number}" for number in reversed(range(8))]
    assert [(agent.name, agent.token > 0) for agent in picture.agents] == [("holder", True)]
    assert picture.records[-1].position == picture.position
    assert picture.steward is None
    assert watch.look(keep).agents == ()
    position = keep.head().position
    watch.look(keep, picture)
    assert keep.head().position == position  # looking writes nothing


@pytest.mark.parametrize("size", [(200, 60), (110, 30), (80, 24), (40, 18), (20, 12), (30, 3)])
def test_a_frame_fits_the_screen(picture: Picture, size: tuple[int, int]) -> None:
    width, height = size
    lines = drawn(picture, width, height)
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    assert text.replace("\n", "").isprintable()
    assert picture.tasks[0].id in text
    assert all(heading in text for heading in ("Tasks", "Agents", "Events")) == (height > 13)


def test_a_frame_says_what_there_was_no_room_for(picture: Picture) -> None:
    assert "Tasks 3 more" in "\n".join(drawn(picture, 100, 20))
    assert "more" not in "\n".join(drawn(picture, 100, 60))
    assert "[bold]not markup" in "\n".join(drawn(picture, 200, 60))


def test_what_sandboxes_use_is_shown_and_what_is_near_its_limit_too(picture: Picture) -> None:
    sample = Sample(900 << 20, 1000 << 20, 7, 100, 10**9, 0, 0)
    used = {picture.tasks[0].id: Used(sample, 0.5), picture.tasks[1].id: Used(None, short=True)}
    lines = drawn(msgspec.structs.replace(picture, used=used), 140, 40)
    assert any("900MiB 90%" in line and "0.50" in line for line in lines)
    assert any("waits for memory" in line for line in lines)


def test_one_frame_is_printed_where_there_is_no_terminal(keep: Keep, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    task = keep.create_task("a task")
    keep.close()
    monkeypatch.setenv("COLUMNS", "90")
    answer = cli("watch")
    assert answer.status == 0
    assert task.id in answer.stdout.decode()
    assert b"\x1b" not in answer.stdout
    assert cli("watch", "--once").status == 0


class Terminal:
    """A terminal of our own, with a program in it."""

    def __init__(self, *argv: str, keep: Path) -> None:
        self._side, theirs = pty.openpty()
        self.resize(24, 100)
        self.before = termios.tcgetattr(theirs)
        self.shown = b""
        self._theirs = theirs
        environment = os.environ | {"TERM": "xterm-256color", "SANDKEEP_KEEP": str(keep)}
        self.process = subprocess.Popen(
            argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._side, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, words: bytes) -> bytes:
        """Wait until it has shown `words` since this was last asked; returns what came before them."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while words not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._side], (), (), 0.1)[0]:
                self.shown += os.read(self._side, 1 << 16)
        before, _, self.shown = self.shown.partition(words)
        return before

    def type(self, keys: bytes) -> None:
        os.write(self._side, keys)

    def modes(self) -> list[object]:
        return termios.tcgetattr(self._theirs)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._side)
        os.close(self._theirs)


def test_a_terminal_shows_what_happens_until_a_key_ends_it(keep: Keep) -> None:
    first = keep.create_task("the first task")
    terminal = Terminal(str(SCRIPT), "watch", keep=keep.path)
    try:
        terminal.until(b"\x1b[?1049h")  # the other screen
        terminal.until(first.id.encode())
        second = keep.create_task("the second task")
        terminal.until(second.id.encode())
        terminal.resize(10, 100)
        frame = terminal.until(b"\x1b[H")
        while b"Agents" in frame or first.id.encode() not in frame:  # of ten lines, none are theirs
            frame = terminal.until(b"\x1b[H")
        assert terminal.modes() != terminal.before
        terminal.type(b"q")
        terminal.until(b"\x1b[?1049l")
        assert eventually(lambda: terminal.process.poll() is not None)
        assert terminal.process.returncode == 0
        assert terminal.modes() == terminal.before
    finally:
        terminal.close()
