"""What is asked of an engine, and what follows: described engines, and one that speaks as an old one would."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from sandkeep.sandboxes import Keep, engine_facts, engine_fitness, pool, slot
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.engine_facts import PODMAN, Facts
from sandkeep.sandboxes.engine_fitness import GOOD_TO_KNOW, REFUSED, UNSAFE
from sandkeep.sandboxes.errors import EngineUnsupported

from .limited import configure
from .test_doctor import GOOD

PODMANS = {"name": PODMAN, "storage": "overlay", "runtime": "crun", "runtimes": ("crun", "runc")}


def described(**changes: object) -> Facts:
    """A good engine, but for these changes."""
    return msgspec.structs.replace(GOOD, **changes)


# ---- what follows from facts


@pytest.mark.parametrize(
    ("changes", "words", "grade"),
    [
        ({"api": "1.40"}, "older than Docker 20.10", REFUSED),
        ({"api": "1.9"}, "older than Docker 20.10", REFUSED),
        ({"security": ("seccomp", "userns")}, "userns-remap", REFUSED),
        ({"rootless": True}, "without root and maps users", REFUSED),
        ({"local": False}, "another machine", UNSAFE),
        ({"seccomp": ""}, "no seccomp", UNSAFE),
        ({"seccomp": "unconfined"}, "no seccomp", UNSAFE),
        ({"limits_memory": False}, "no memory", UNSAFE),
        ({"limits_pids": False}, "no processes", UNSAFE),
        ({"live_restore": False}, "ends all sandboxes", GOOD_TO_KNOW),
        ({"storage": "vfs"}, "whole copy", GOOD_TO_KNOW),
        ({"desktop": True}, "virtual machine", GOOD_TO_KNOW),
        ({"runtime": "runsc"}, "gVisor", GOOD_TO_KNOW),
        (PODMANS, "user namespaces", GOOD_TO_KNOW),
        ({**PODMANS, "rootless": True}, "delegated", GOOD_TO_KNOW),
        ({**PODMANS, "rootless": True, "cgroup": "1"}, "no sandbox can be frozen", GOOD_TO_KNOW),
    ],
)
def test_what_an_engine_lacks_is_graded(changes: dict[str, object], words: str, grade: str) -> None:
    facts = described(**changes)
    (found,) = [each for each in engine_fitness.lacks(facts) if words in each.what]
    assert (found.grade, bool(found.advice)) == (grade, True)
    if grade == REFUSED:
        with pytest.raises(EngineUnsupported, match=words):
            engine_fitness.check(facts)
    else:
        assert (found in engine_fitness.check(facts)) == (grade == UNSAFE)


def test_nothing_is_lacking_in_a_good_engine() -> None:
    assert list(engine_fitness.lacks(GOOD)) == []
    assert list(engine_fitness.lacks(GOOD, "runc")) == []


def test_a_runtime_has_to_be_one_that_the_engine_has_and_lets_us_choose() -> None:
    with pytest.raises(EngineUnsupported, match=r"no runtime 'runsc', which keep.toml names; it has runc"):
        engine_fitness.check(GOOD, "runsc")
    facts = described(runtimes=("runc", "runsc"))
    assert engine_fitness.check(facts, "runsc") == set()
    assert ["gVisor" in each.what for each in engine_fitness.lacks(facts, "runsc")] == [True]
    podmans = described(**PODMANS)
    with pytest.raises(EngineUnsupported, match=r"lets no client choose 'runc'; name 'runc' in its containers.conf"):
        engine_fitness.check(podmans, "runc")
    assert engine_fitness.check(podmans, "crun") == set()


# ---- what an engine says


def asked(info: dict[str, Any], *, components: tuple[str, ...] = ("Engine",), remote: bool = False) -> Facts:
    """The facts of an engine that says so of itself."""
    told = {
        "Driver": "overlay2",
        "NCPU": 2,
        "MemTotal": 1 << 30,
        "MemoryLimit": True,
        "PidsLimit": True,
        "SecurityOptions": ["name=seccomp,profile=default"],
        "Runtimes": {"runc": {"path": "runc"}},
        "DefaultRuntime": "runc",
        "CgroupVersion": "1",
        "CgroupDriver": "cgroupfs",
        "ID": "an id",
        "DockerRootDir": "/var/lib/engine",
    }
    version = {"Version": "1", "ApiVersion": "1.41", "Components": [{"Name": name} for name in components]}
    client: Any = SimpleNamespace(
        info=lambda: told | info,
        version=lambda: version,
        api=SimpleNamespace(base_url="http://10.0.0.1:2375" if remote else "http+docker://localhost"),
    )
    return engine_facts.ask(client)


def test_docker_is_known_with_what_it_confines_containers_with() -> None:
    found = asked({"SecurityOptions": ["name=apparmor", "name=seccomp,profile=unconfined", "name=rootless"]})
    assert (found.name, found.seccomp, found.rootless) == ("Docker", "unconfined", True)
    assert asked({"SecurityOptions": None}).seccomp == ""
    assert asked({"OperatingSystem": "Docker Desktop"}).desktop
    assert not asked({"OperatingSystem": "Debian"}).desktop
    assert asked({"LiveRestoreEnabled": True}).live_restore
    assert not asked({}).live_restore
    assert not asked({}, remote=True).local


def test_podman_is_known_with_what_it_has_rather_than_what_it_knows(tmp_path: Path) -> None:
    (tmp_path / "crun").touch()
    runtimes = {name: {"path": str(tmp_path / name)} for name in ("crun", "runsc")}
    found = asked({"Runtimes": runtimes, "DefaultRuntime": "crun"}, components=("Podman Engine", "Conmon"))
    assert (found.podman, found.runtimes, found.runtime, found.live_restore) == (True, ("crun",), "crun", True)
    assert (found.limits_memory, found.limits_pids) == (True, True)
    assert found.identity == "/var/lib/engine"  # and not the id, of which podman says another each time
    without_root = asked({"Rootless": True}, components=("Podman Engine",))
    assert (without_root.rootless, without_root.limits_memory, without_root.limits_pids) == (True, False, False)
    assert asked({"Rootless": True, "CgroupVersion": "2"}, components=("Podman Engine",)).limits_memory


# ---- engines that speak another API


@contextlib.contextmanager
def speaking(folder: Path, api: str, ping: int) -> Iterator[str]:
    """As much of an engine as says which versions of the API it speaks."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pinged = self.path.endswith("/_ping")
            body = {"message": f"client version 1.41 is too old. Minimum supported API version is {api}"}
            if not pinged:
                body = {"ApiVersion": api, "Version": "1"}
            content = json.dumps(body).encode()
            self.send_response(ping if pinged else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def address_string(self) -> str:
            return ""

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with socketserver.ThreadingUnixStreamServer(str(folder / "s"), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever).start()
        yield f"unix://{folder}/s"
        server.shutdown()


@pytest.mark.parametrize(
    ("api", "ping", "words"), [("1.40", 200, "older than Docker 20.10's"), ("1.99", 400, "upgrade the older of both")]
)
def test_an_engine_that_speaks_no_api_of_ours_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: str, ping: int, words: str
) -> None:
    with speaking(tmp_path, api, ping) as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        with pytest.raises(EngineUnsupported, match=words):
            Engine().containers("0" * 16)


# ---- who starts a sandbox


@pytest.mark.engine
def test_what_makes_sandboxes_less_safe_is_logged_once_and_what_cannot_work_starts_none(
    keep: Keep, caplog: pytest.LogCaptureFixture
) -> None:
    vars(keep.engine)["facts"] = msgspec.structs.replace(keep.engine.facts, seccomp="unconfined")
    for title in ("one", "two"):
        keep.create_task(title).start_sandbox()
    said = [each.getMessage() for each in caplog.records if each.name == "sandkeep.sandboxes.engine"]
    assert ["no seccomp" in each for each in said] == [True]
    vars(keep.engine)["facts"] = msgspec.structs.replace(keep.engine.facts, security=("userns",))
    task = keep.create_task("three")
    with pytest.raises(EngineUnsupported, match="userns-remap"):
        task.execute(["true"])
    assert (task.state.container, task.state.pending) == (None, ())
    assert len(keep.engine.containers(keep.id)) == 2


@pytest.mark.engine
def test_a_slot_of_another_runtime_is_nobodys(keep: Keep) -> None:
    configure(keep, "[sandboxes]\npool = 1")
    assert pool.fill(keep)
    (name,) = slot.names(keep)
    configure(keep, '[sandboxes]\nruntime = "io.containerd.runc.v2"')
    task = keep.create_task("takes the slot's id")
    assert task.id == name
    waiting = slot.find(keep, name)
    assert waiting is not None
    task.start_sandbox()
    assert task.state.container not in (None, waiting.container)
    assert [each.container for each in keep.engine.containers(keep.id)] == [task.state.container]
