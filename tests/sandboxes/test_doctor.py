"""The doctor: what it says of a host, an engine and a keep, and when it asks for something to be done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandkeep.events.catalogue import CacheChoice
from sandkeep.sandboxes import Keep, Task, doctor
from sandkeep.sandboxes.doctor import examine, healthy
from sandkeep.sandboxes.documents_keep import Finding
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.engine_facts import Facts
from sandkeep.sandboxes.incumbent import Seat

from .support import Cli, container_of, engine, stopped_at

GOOD = Facts(
    "28.1", "1.49", True, "2", "overlay2", 4, 8 << 30, ("runc",), ("seccomp", "cgroupns"), False, True, True, True
)


def of(area: str, found: list[Finding]) -> list[Finding]:
    """What was found in an area."""
    return [finding for finding in found if finding.area == area]


class Described:
    """An engine that is known by its facts only."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    @property
    def facts(self) -> Facts:
        return self._facts


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host has every tool."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")


def judged(changes: dict[str, object], runtime: str = "") -> list[Finding]:
    """What is said of a good engine with these changes, without what it is."""
    changed: Any = Described(msgspec.structs.replace(GOOD, **changes))
    return list(doctor._engine(changed, runtime))[1:]


def test_nothing_is_said_of_a_good_engine() -> None:
    assert judged({}) == []


def test_what_an_engine_lacks_is_said_with_what_to_do() -> None:
    lacking = {"limits_memory": False, "security": ("seccomp", "userns")}
    found = judged(lacking, "kata")
    assert [each.act for each in found] == [True, True, True]
    assert all(each.advice for each in found)
    assert "no runtime 'kata'" in found[0].what


def test_without_an_engine_the_rest_is_still_looked_at(keep: Keep, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    keep.close()
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    answer = cli("doctor", "--json")
    found = msgspec.convert(answer.json["findings"], list[Finding])
    assert (answer.status, answer.json["ok"]) == (1, False)
    assert "no Docker engine answers" in of("engine", found)[0].what
    assert "1 events" in of("keep", found)[0].what
    assert of("steward", found)[0].advice == "run 'sandkeep steward'"
    lines = cli("doctor").stdout.decode().splitlines()
    assert [line[0] for line in lines] == ["✗" if each.act else "·" if each.advice else "✓" for each in found]


def test_a_keep_that_cannot_be_opened_is_a_finding(tmp_path: Path) -> None:
    found = of("keep", examine(tmp_path / "nothing", Engine()))
    assert [each.act for each in found] == [True]
    assert "there is no keep in" in found[0].what


def test_a_full_disk_missing_tools_and_bad_settings_need_something(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    keep.close()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "LEAST_BYTES", 1 << 80)
    with (keep.path / "keep.toml").open("a") as file:
        file.write("[sandboxes]\npool = -1\n[checkpoints]\nkeep = 1\n")
    found = examine(keep.path, Engine())
    assert [each.act for each in of("host", found)] == [True, False]
    assert [each.act for each in of("disk", found)] == [True, True, False]
    assert [each.advice for each in of("keep", found) if each.act] == ["correct keep.toml"] * 2


def test_what_holds_workspaces_to_their_size_and_what_caches_take_is_said(keep: Keep) -> None:
    with (keep.path / "keep.toml").open("a") as file:
        file.write('[caches]\nnpm = {}\npip = { mode = "read-write", size = "1MiB" }\n')
    keep.caches.show((CacheChoice("pip", True),))
    keep.caches.tick()
    keep.close()
    found = examine(keep.path, Engine())
    free, means, taken = of("disk", found)
    assert "free" in free.what
    assert "our images" in taken.what
    assert "the kernel limits each file, and 'du' measures the sum" in means.what
    npm, pip = of("caches", found)
    assert (npm.what, pip.what) == ("npm: read-only, not measured yet of 5GiB", "pip: read-write, 0B of 1MiB")
    (keep.path / "keep.toml").write_text((keep.path / "keep.toml").read_text() + "one = 1\n")
    (wrong,) = of("caches", examine(keep.path, Engine()))
    assert (wrong.act, "one is no table" in wrong.what) == (True, True)


def test_a_steward_and_its_failing_duties_are_shown(keep: Keep) -> None:
    keep.close()
    seat = Seat(keep.path)
    assert seat.take()
    seat.say({"pool": "EngineFailed: no\x1b[31m"})
    running, failing = of("steward", examine(keep.path, Engine()))
    assert "is the steward" in running.what
    assert (failing.act, "'pool' fails: EngineFailed: no" in failing.what) == (True, True)
    seat.leave()


@pytest.mark.engine
def test_a_healthy_host_needs_nothing(keep: Keep, task: Task, cli: Cli) -> None:
    keep.close()
    answer = cli("doctor")
    assert answer.status == 0, answer.stdout.decode()
    assert "Docker " in answer.stdout.decode()
    found = examine(keep.path, Engine())
    assert healthy(found)
    assert of("sandboxes", found) == [Finding("sandboxes", "1, of which 0 are frozen, and 0 that wait for a task")]
    assert [each.advice for each in of("images", found)] == [""]


@pytest.mark.engine
def test_what_a_crash_left_is_seen_and_not_touched(keep: Keep, task: Task) -> None:
    task.rest()
    lost = keep.create_task("lost")
    lost.start_sandbox()
    with stopped_at("after:locks.act", "execute", keep.path, lost.id, "true") as process:
        process.kill()
        process.wait()
    other = keep.create_task("other")
    with stopped_at("after:engine.start", "execute", keep.path, other.id, "true") as process:
        process.kill()
        process.wait()
    with engine() as client:
        client.api.remove_container(container_of(lost), force=True)
    head = keep.head()
    keep.close()
    found = examine(keep.path, Engine())
    assert [each.what for each in of("sandboxes", found)] == [
        "2, of which 1 are frozen, and 0 that wait for a task",
        "1 containers are nobody's",
        "1 have ended by themselves",
    ]
    assert [each.what for each in of("keep", found)][1:] == ["something was cut off by a crash, and is not settled yet"]
    assert healthy(found)
    with Keep.open(keep.path) as again:
        assert again.head() == head
