"""A Python that is lent to images without one: they get the whole agent, and can do nothing to it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from docker.models.containers import Container

from sandkeep.sandboxes import Keep, Task, image, interpreter, isolation
from sandkeep.sandboxes.container import GUEST, SHELL
from sandkeep.sandboxes.errors import CommandNotFound
from sandkeep.sandboxes.execution import TIMED_OUT
from sandkeep.sandboxes.guest import lend

from .support import container_of, containers, engine, left, listing, shell, text

pytestmark = pytest.mark.engine


@pytest.fixture
def small(keep: Keep) -> Task:
    """A task whose image is one static program."""
    return keep.create_task("small", image="busybox")


def lent(keep: Keep) -> list[Path]:
    return [path for path in (keep.path / "run").iterdir() if "python-" in path.name]


def test_an_image_of_one_program_has_the_whole_agent(keep: Keep, small: Task) -> None:
    assert text(small.execute(["cat"], stdin=b"given")) == "given"
    container = container_of(small)
    assert keep.engine.form(container) == GUEST
    result = small.execute(["sh", "-c", "trap '' TERM; setsid sleep 1000 & sleep 1000"], timeout=0.5)
    assert (result.exit_code, result.timed_out, left(small)) == (TIMED_OUT, True, [])
    started = small.start(["sh", "-c", "echo begun; sleep 1000"])
    assert started.stop().exit_code == 137
    with open(os.devnull, "rb") as keyboard:
        shown = small.terminal(["sh", "-c", "test -t 1 && echo yes"], keyboard, lambda *_: None, lambda: (24, 80))
    assert text(shown) == "yes\r\n"
    with pytest.raises(CommandNotFound):
        small.execute(["python3"])
    assert container_of(small) == container
    assert [path.stat().st_mode & 0o777 for path in lent(keep)] == [0o755]


def test_it_has_a_way_out_too(keep: Keep, small: Task) -> None:
    keep.network(small.id).set("allow", allow=["allowed.example:80"])
    said = shell(small, "wget -O- http://other.example/ 2>&1; true")
    assert "403" in said


def test_its_isolation_can_be_checked(keep: Keep, small: Task) -> None:
    found = isolation.check(keep, small)
    assert [each.way for each in found.attempts if each.open] == []


def test_the_sandbox_cannot_change_it(keep: Keep, small: Task) -> None:
    small.execute(["true"])
    (folder,) = lent(keep)
    before = listing(folder)
    assert shell(small, "cd /run/sandkeep-python && pwd") == "/run/sandkeep-python\n"
    shell(
        small,
        "cd /run/sandkeep-python; touch x; rm -rf bin lib; mv lib/loader y; echo >lib/loader; chmod 777 lib; true",
    )
    assert listing(folder) == before
    result = small.execute(["touch", "/run/sandkeep-python/bin/python3"])
    assert b"Read-only file system" in (result.stderr.data or b"")


def test_it_is_copied_once_and_never_seen_half(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    half = keep.path / "run" / ".python"
    (half / "lib").mkdir(parents=True)
    (half / "lib" / "loader").write_text("half of one, which a process that was killed has left")
    with ThreadPoolExecutor(3) as pool:
        (found,) = set(pool.map(lambda _: interpreter.borrowed(keep), range(3)))
    assert found is not None
    assert lent(keep) == [found]
    assert (found / "lib" / "loader").stat().st_size > 100_000
    assert not half.exists()
    monkeypatch.setattr(interpreter, "_copy", lambda *_: pytest.fail("it was there"))
    assert interpreter.borrowed(keep) == found
    with engine() as client:
        assert client.containers.list(all=True, filters={"label": f"sandkeep.keep={keep.id}"}) == []


def test_a_copy_that_was_killed_leaves_nothing_in_the_engine(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(self: Container, **options: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Container, "start", killed)
        patch.setattr(Container, "remove", killed)
        with pytest.raises(Killed):
            interpreter.borrowed(keep)
    (left_behind,) = containers(keep.id)
    assert lent(keep) == []
    done = keep.reconcile(again=True)
    assert any(left_behind[:12] in line for line in done)
    assert containers(keep.id) == []
    assert interpreter.borrowed(keep) is not None


@pytest.mark.parametrize("fault", ["no base image", "a copy that fails"])
def test_without_it_commands_are_run_by_the_engine(
    keep: Keep,
    small: Task,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    fault: str,
) -> None:
    if fault == "no base image":
        monkeypatch.setattr(image, "find", lambda client, recipe: None)
    else:
        broken = tmp_path / "broken.py"
        broken.write_text("raise SystemExit('it does not work')")
        monkeypatch.setattr(lend, "__file__", str(broken))
    small.execute(["true"])
    assert keep.engine.form(container_of(small)) == SHELL
    assert ("no base image" if fault == "no base image" else "it does not work") in caplog.text
    assert lent(keep) == []
