"""Keeps, tasks and sources for every test, and a check at the end that the engine and the machine are as before."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from hypothesis import HealthCheck, settings

from sandkeep.sandboxes import Keep, Task
from sandkeep.sandboxes.container import KEEP

# How long an example takes depends on what else the machine does, and is nothing that a test here is about.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def close(keep: Keep) -> None:
    """Close a keep, end its egress proxy, and remove what it has in the engine, if it was asked for anything."""
    try:
        if "_client" in vars(keep.engine):
            for found in keep.engine.containers(keep.id):
                keep.engine.remove(found.container)
    finally:
        keep.close()
        for process in proxies(keep.path):
            os.kill(process, signal.SIGTERM)
        _wait_until_none(lambda: proxies(keep.path))


@pytest.fixture(scope="session", autouse=True)
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What this machine has is no matter of most tests, and what others do on it is of none."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "host.toml").write_text('[budget]\nmemory = "1000TiB"\npids = 1_000_000_000\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANDKEEP_HOST", str(folder))
        yield folder


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    """A new keep. Docker is not asked for anything until the test does something that needs it."""
    made = Keep.init(tmp_path / "keep", actor="tester")
    yield made
    close(made)


@pytest.fixture
def task(keep: Keep) -> Task:
    """A new task of `keep` with an empty workspace and a running sandbox."""
    made = keep.create_task("a test")
    made.start_sandbox()
    return made


@pytest.fixture(scope="module")
def shared_keep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keep]:
    """A keep for all tests of a module: those that do not depend on what others did in it."""
    made = Keep.init(tmp_path_factory.mktemp("shared") / "keep", actor="tester")
    yield made
    close(made)


@pytest.fixture(scope="module")
def shared_task(shared_keep: Keep) -> Task:
    """A task for all tests of a module. A test that leaves files in its workspace names them after itself."""
    made = shared_keep.create_task("a shared test")
    made.start_sandbox()
    return made


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository of one commit, for looking at only."""
    from .sandboxes.support import make_repository

    return make_repository(tmp_path_factory.mktemp("source") / "repository")


@pytest.fixture
def source(repository: Path, tmp_path: Path) -> Path:
    """A git repository of one commit, for this test alone."""
    return Path(shutil.copytree(repository, tmp_path / "source", symlinks=True))


def proxies(keep: Path) -> list[int]:
    """The processes that are an egress proxy of the keep in this folder."""
    return _proxies(f"{keep}\0")


def _proxies(beginning: str) -> list[int]:
    return [
        process for process, command in _commands() if f"\0sandkeep.sandboxes.egress_process\0{beginning}" in command
    ]


def _commands() -> Iterator[tuple[int, str]]:
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and int(process.name) != os.getpid():
                yield int(process.name), os.fsdecode((process / "cmdline").read_bytes())


def _wait_until_none(look: Callable[[], list[int]]) -> None:
    deadline = time.monotonic() + 30
    while look():
        assert time.monotonic() < deadline, "an egress proxy does not end"
        time.sleep(0.02)


def _left_in_engine(folder: Path) -> list[str]:
    with contextlib.closing(docker.DockerClient.from_env()) as client:
        return [
            f"{each['Names'][0]} ({each['State']})"
            for each in client.api.containers(all=True, filters={"label": KEEP})
            if any(Path(mount.get("Source", "/")).is_relative_to(folder) for mount in each["Mounts"])
        ]


def _left_running(folder: Path) -> list[str]:
    return [command.replace("\0", " ") for _, command in _commands() if f"{folder}/" in command]


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the end of the session: no container mounts a folder of the tests, and no process was started with one."""
    folder = tmp_path_factory.getbasetemp()
    yield
    _wait_until_none(lambda: _proxies(f"{folder}/"))  # they end by themselves, a while after their last sandbox
    assert _left_running(folder) == []
    if any(item.get_closest_marker("engine") for item in request.session.items):
        assert _left_in_engine(folder) == []


@pytest.fixture(scope="session", autouse=True)
def torn_coverage_is_dropped(pytestconfig: pytest.Config) -> Iterator[None]:
    """A process that is killed while it saves what it covered leaves half a database, at which all others would fail
    to be combined."""
    yield
    data = Path(os.environ.get("COVERAGE_FILE", pytestconfig.rootpath / ".coverage"))
    for path in data.parent.glob(f"{data.name}.*"):
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as saved:
            try:
                state = saved.execute("PRAGMA integrity_check").fetchone()[0]
            except sqlite3.DatabaseError as error:
                state = str(error)
        if state != "ok":
            warnings.warn(f"{path.name} is dropped: {state.splitlines()[0]}", stacklevel=1)
            path.unlink()
