"""Named caches: what is declared, what a task may have of it, how its sandbox sees it, and what is removed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep.events import BadInput
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import CacheChoice
from sandkeep.sandboxes import Keep, caches, pool, slot, workspace
from sandkeep.sandboxes.errors import BadSettings, PolicyDenied
from sandkeep.sandboxes.limits import LIMITS

from .limited import configure, events
from .support import Cli, container_of, reopened, shell, status, text, types

MIB = 1 << 20
DECLARED = """
[caches]
pip = { mode = "read-write", size = "2MiB" }
npm = { tasks = "all" }
models = { mode = "read-write", variable = "HF_HOME" }
big-data = {}
"""


# ---- what is declared, and chosen


def declared(tmp_path: Path, text: str) -> dict[str, caches.Cache]:
    (tmp_path / "keep.toml").write_text(text)
    return caches.load(tmp_path)


def test_there_is_no_cache_that_is_not_declared(tmp_path: Path) -> None:
    assert declared(tmp_path, "") == {}
    with pytest.raises(PolicyDenied, match="no cache 'pip', but none"):
        caches.choose({}, ["pip"])
    assert caches.choose({}, ()) == ()


def test_what_is_declared_has_safe_defaults_and_the_variable_of_its_tool(tmp_path: Path) -> None:
    found = declared(tmp_path, DECLARED)
    assert found["pip"] == caches.Cache("pip", True, 2 * MIB, False, "PIP_CACHE_DIR")
    assert found["npm"] == caches.Cache("npm", False, 5 << 30, True, "npm_config_cache")
    assert found["models"].variable == "HF_HOME"
    assert found["big-data"].variable == "SANDKEEP_CACHE_BIG_DATA"


def test_everything_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    wrong = """
[caches]
pip = { mode = "write", size = "1KiB", tasks = "some", variable = "a b", colour = 1 }
npm = "read-write"
"../up" = {}
one = { variable = "X" }
two = { variable = "X" }
"""
    with pytest.raises(BadSettings) as caught:
        declared(tmp_path, wrong)
    said = str(caught.value)
    assert "has 8 errors" in said
    for words in (
        "mode",
        "size",
        "tasks",
        "'a b'",
        "colour",
        "npm is no table",
        "../up is no name",
        "X is the variable",
    ):
        assert words in said
    for other in ("caches = 1", "[caches", "\n".join(["[caches]", *(f"c{each} = {{}}" for each in range(17))])):
        with pytest.raises(BadSettings):
            declared(tmp_path, other)


def test_a_task_has_what_all_have_and_what_it_asks_for_and_no_more_than_is_granted(tmp_path: Path) -> None:
    found = declared(tmp_path, DECLARED)
    npm, pip = CacheChoice("npm"), CacheChoice("pip", True)
    assert caches.choose(found, ()) == (npm,)
    assert caches.choose(found, ["pip", "npm"]) == (npm, pip)
    assert caches.choose(found, ["pip=read-only"]) == (npm, CacheChoice("pip"))
    assert caches.choose(found, None) == ()
    with pytest.raises(PolicyDenied, match="npm is read-only"):
        caches.choose(found, ["npm=read-write"])
    with pytest.raises(PolicyDenied, match=r"no cache '\.\./up', but big-data, models, npm, pip"):
        caches.choose(found, ["../up"])
    with pytest.raises(BadInput, match="no such mode"):
        caches.choose(found, ["pip=rw"])


def test_the_settings_can_take_back_what_was_given(tmp_path: Path) -> None:
    given = (CacheChoice("gone", True), CacheChoice("npm", True), CacheChoice("pip", True))
    assert caches.granted(declared(tmp_path, DECLARED), given) == (CacheChoice("npm"), CacheChoice("pip", True))


def test_a_task_is_refused_a_cache_before_anything_is_stored(keep: Keep) -> None:
    head = keep.head()
    with pytest.raises(PolicyDenied):
        keep.create_task("t", caches=["pip"])
    assert keep.head() == head


def test_what_a_task_was_given_is_on_record(keep: Keep) -> None:
    configure(keep, DECLARED)
    task = keep.create_task("t", caches=["pip=read-only"])
    assert types(task.history())[:2] == ["TaskCreated", "CachesChosen"]
    assert events(task, ev.CachesChosen) == [ev.CachesChosen((CacheChoice("npm"), CacheChoice("pip")))]
    with reopened(keep) as again:
        assert again.caches.of(task.id) == (CacheChoice("npm"), CacheChoice("pip"))
        assert again.caches.of(again.create_task("t", caches=None).id) == ()


# ---- what is removed


def fill(keep: Keep, name: str, kib: int) -> Path:
    """A file of this size in a cache."""
    folder = keep.caches.show((CacheChoice(name),))[0].folder
    (folder / "file").write_bytes(os.urandom(kib << 10))
    return folder / "file"


def test_a_cache_is_brought_to_its_size_and_that_is_recorded(keep: Keep) -> None:
    configure(keep, DECLARED)
    small, large = fill(keep, "npm", 100), fill(keep, "pip", 3000)
    assert [each.name for each in keep.caches.prune() if each.removed.files] == ["pip"]
    assert (small.exists(), large.exists()) == (True, False)
    (record,) = keep.log.read_stream("cache/pip")
    assert isinstance(pruned := record.event, ev.CachePruned)
    assert (pruned.reason, pruned.files, pruned.left) == ("size", 1, 0)
    assert pruned.bytes >= 3000 << 10
    head = keep.head()
    assert all(not each.removed.files for each in keep.caches.prune())
    assert keep.head() == head


def test_a_cache_can_be_emptied_and_one_that_is_declared_no_more_goes(keep: Keep) -> None:
    configure(keep, DECLARED)
    pip, npm = fill(keep, "pip", 10), fill(keep, "npm", 10)
    keep.caches.prune("pip", everything=True)
    assert (pip.exists(), pip.parent.is_dir(), npm.exists()) == (False, True, True)
    configure(keep, "[caches]\npip = {}\n")
    assert keep.caches.tick() == []
    assert npm.exists()
    keep.caches.prune()
    assert sorted(os.listdir(keep.path / "caches")) == ["pip"]
    with pytest.raises(BadInput, match="no cache 'npm'"):
        keep.caches.prune("npm")


def test_the_steward_looks_when_it_is_time(keep: Keep) -> None:
    configure(keep, DECLARED)
    large = fill(keep, "pip", 3000)
    (line,) = keep.caches.tick()
    assert line.startswith("cache pip: removed 1 files, 2.9MiB")
    assert not large.exists()
    assert keep.caches.remembered("pip") == 0
    assert keep.caches.remembered("npm") is None


def test_a_link_in_the_place_of_a_cache_is_not_followed_and_holds_up_no_other(
    keep: Keep, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configure(keep, DECLARED)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").touch()
    fill(keep, "models", 1).unlink()
    (keep.path / "caches" / "models").rmdir()
    (keep.path / "caches" / "models").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="models"):
        keep.caches.prune("models", everything=True)
    large = fill(keep, "pip", 3000)
    (line,) = keep.caches.tick()
    assert line.startswith("cache pip: removed")
    assert not large.exists()
    assert "the cache models cannot be looked at" in caplog.text
    assert (tmp_path / "outside" / "file").exists()


def test_the_command_line_lists_and_prunes(cli: Cli) -> None:
    assert cli("init").status == 0
    assert b"declare them under [caches] in keep.toml" in cli("caches").stdout
    with Keep.open(cli.keep) as keep:
        configure(keep, DECLARED)
        task = keep.create_task("t", caches=["pip"])
        fill(keep, "pip", 3000)
    big, _, npm, pip = cli("caches", "--json").json
    assert (big["mode"], big["tasks"], big["bytes"], big["used"]) == ("read-only", [], 0, None)
    assert (npm["all_tasks"], npm["tasks"]) == (True, [task.id])
    assert (pip["mode"], pip["limit"], pip["variable"], pip["uses"]) == ("read-write", 2 * MIB, "PIP_CACHE_DIR", 1)
    assert pip["bytes"] >= 3000 << 10
    assert b"read-write" in cli("caches").stdout
    shown = cli("show-task", task.id, "--json").json
    assert shown["caches"] == [{"name": "npm", "writable": False}, {"name": "pip", "writable": True}]
    assert (shown["disk"]["limit"], shown["disk"]["bytes"]) == (LIMITS.disk_bytes, None)
    said = cli("show-task", task.id).stdout.decode()
    for line in ("disk  not measured yet of 20GiB: the kernel", "cache  npm: read-only", "cache  pip: read-write"):
        assert line in said
    (done,) = cli("prune-caches", "pip", "--json").json
    assert (done["name"], done["removed"]["files"], done["left"]["bytes"]) == ("pip", 1, 0)
    assert cli("prune-caches", "--all").stdout.startswith(b"pip  removed 0 files")
    cli("prune-caches", "../tasks").refused("bad-input", 2)
    cli("create-task", "t", "--cache", "none-such").refused("policy-denied", 1)
    assert cli("create-task", "t", "--cache", "pip=read-only", "--json").status == 0
    assert cli("create-task", "t", "--no-caches").status == 0
    assert [len(each["tasks"]) for each in cli("caches", "--json").json] == [0, 0, 2, 2]


# ---- in sandboxes


@pytest.fixture(scope="module")
def shared(shared_keep: Keep) -> Iterator[Keep]:
    """A keep with caches, for all tests of sandboxes."""
    configure(shared_keep, DECLARED)
    yield shared_keep
    configure(shared_keep, "")


@pytest.mark.engine
def test_a_sandbox_sees_its_caches_and_its_tools_find_them(shared: Keep) -> None:
    writer = shared.create_task("writes", caches=["pip", "models"])
    said = shell(writer, "echo $PIP_CACHE_DIR $npm_config_cache $HF_HOME; echo made >$PIP_CACHE_DIR/x; ls /caches")
    assert said.split() == ["/caches/pip", "/caches/npm", "/caches/models", "models", "npm", "pip"]
    assert (shared.path / "caches" / "pip" / "x").stat().st_uid == workspace.owner()[0]
    reader = shared.create_task("reads", caches=["pip=read-only"])
    assert shell(reader, "cat $PIP_CACHE_DIR/x; ls /caches").split() == ["made", "npm", "pip"]
    for line in (
        "touch /caches/pip/y",
        "rm /caches/pip/x",
        "touch /caches/npm/y",
        "touch /caches/y",
        "mv /caches/pip /",
    ):
        assert reader.execute(["sh", "-c", line]).exit_code != 0
    assert shell(shared.create_task("none", caches=None), "ls /; env").count("/caches") == 0
    for task in (writer, reader):
        task.complete()
    assert [each.used_ns > 0 for each in (found.use for found in shared.caches.listed()) if each.name == "pip"] == [
        True
    ]


@pytest.mark.engine
def test_what_the_settings_take_back_the_next_sandbox_has_not(shared: Keep) -> None:
    task = shared.create_task("t", caches=["models"])
    shell(task, "touch /caches/models/x && chmod 0 /caches/models")
    task.stop()
    configure(shared, "[caches]\nmodels = {}\n")
    assert shell(task, "ls /caches /caches/models").split() == ["/caches:", "models", "/caches/models:", "x"]
    assert task.execute(["touch", "/caches/models/y"]).exit_code != 0
    configure(shared, DECLARED)
    task.complete()


@pytest.mark.engine
def test_nothing_of_a_cache_can_be_linked_or_moved_out_of_it(shared: Keep) -> None:
    task = shared.create_task("t", caches=["pip"])
    shell(task, "mkdir -p /caches/pip/folder; echo mine >/workspace/mine; echo x >/caches/pip/folder/x")
    for code in (
        "os.link('/caches/pip/folder/x', '/workspace/x')",
        "os.link('/workspace/mine', '/caches/pip/mine')",
        "os.rename('/caches/pip/folder', '/workspace/folder')",
        "os.rename('/workspace/mine', '/caches/pip/mine')",
    ):
        program = f"import os\ntry:\n    {code}\nexcept OSError as e:\n    print(e.strerror)"
        assert text(task.execute(["python3", "-c", program])) == "Invalid cross-device link\n"
    task.complete()


@pytest.mark.engine
def test_a_slot_has_the_caches_that_all_tasks_have_and_who_asks_for_more_takes_none(keep: Keep) -> None:
    configure(keep, DECLARED + "[sandboxes]\npool = 1\n")
    pool.fill(keep)
    (name,) = slot.names(keep)
    assert keep.create_task("more", caches=["pip"]).id != name
    task = keep.create_task("as all", image=None)
    assert task.id == name
    ready = slot.find(keep, name)
    assert ready is not None
    assert shell(task, "ls /caches") == "npm\n"
    assert container_of(task) == ready.container
    assert status(task) == "running"
    pool.fill(keep)
    later = keep.create_task("takes one")
    ready = slot.find(keep, later.id)
    assert ready is not None
    configure(keep, "")
    assert shell(later, "ls /").count("caches") == 0
    assert container_of(later) != ready.container
