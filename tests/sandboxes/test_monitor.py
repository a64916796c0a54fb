"""What the monitor reads and says, without an engine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import Use
from sandkeep.projections.resources import Near
from sandkeep.sandboxes import cgroup, disk, monitor
from sandkeep.sandboxes.cgroup import Group, Sample

GIB = 1 << 30
MINUTE = 60 * 10**9
LIMITS = ev.Limits(GIB, 10**9, 100, 1 << 20)
REQUEST = ev.ExtensionRequested("x", "c", 0, GIB, 2 * GIB, ev.Lease("b", 1))
MEASURED = ev.SandboxMeasured("c", 10 * GIB, 1000, 0, 0, 0)


def use(*near: Near, measured: ev.SandboxMeasured | None = MEASURED) -> Use:
    """A task with a live sandbox, of which as much was said."""
    return Use("t", intent="i", container="c", limits=LIMITS, near=near, measured=measured)


def sample(percent: int = 0, *, pids: int = 0, held: bool = False, oom_kills: int = 0) -> Sample:
    return Sample(GIB * percent // 100 + 1, GIB, pids, 100, 0, 0, oom_kills, held)


def said(events: list[Event]) -> list[tuple[str, str, int]]:
    """Type, resource and percent of what was said."""
    return [(type(each).__name__, getattr(each, "resource", ""), getattr(each, "percent", 0)) for each in events]


@pytest.mark.parametrize(
    ("before", "percent", "age", "expected"),
    [
        (0, 79, 0, []),
        (0, 80, 0, [("LimitNeared", "memory", 80)]),
        (0, 94, 0, [("LimitNeared", "memory", 80)]),
        (0, 95, 0, [("LimitNeared", "memory", 95), ("ExtensionRequested", "", 0)]),
        (80, 94, MINUTE, []),
        (80, 96, 0, [("LimitNeared", "memory", 95), ("ExtensionRequested", "", 0)]),
        (95, 100, MINUTE, []),
        (95, 86, MINUTE, []),
        (95, 84, MINUTE - 1, []),
        (95, 84, MINUTE, [("LimitEased", "memory", 0)]),
        (80, 71, MINUTE, []),
        (80, 69, MINUTE, [("LimitEased", "memory", 0)]),
    ],
)
def test_memory_is_said_to_near_its_limit_and_to_ease(
    before: int, percent: int, age: int, expected: list[tuple[str, str, int]]
) -> None:
    near = (Near("memory", before, 1000),) if before else ()
    assert said(monitor.judge(use(*near), sample(percent), 1000 + age, REQUEST)) == expected


def test_what_the_kernel_holds_is_short_whatever_is_counted() -> None:
    found = monitor.judge(use(), sample(50, held=True), 0, REQUEST)
    assert said(found) == [("LimitNeared", "memory", 95), ("ExtensionRequested", "", 0)]


def test_processes_ask_for_nothing() -> None:
    assert said(monitor.judge(use(), sample(pids=100), 0, REQUEST)) == [("LimitNeared", "pids", 95)]


def test_no_limit_is_not_neared() -> None:
    assert monitor.judge(use(), Sample(GIB, 0, 1000, 0, 0, 0, 0), 0, REQUEST) == []


def test_peaks_are_recorded_when_they_have_grown() -> None:
    first = monitor.judge(use(measured=None), sample(10, pids=4), 0, None)
    assert first == [ev.SandboxMeasured("c", GIB // 10 + 1, 4, 0, 0, 0)]
    after = use(measured=ev.SandboxMeasured("c", GIB // 10 + 1, 4, 0, 0, 0))
    assert monitor.judge(after, sample(12, pids=5), 0, None) == []
    assert said(monitor.judge(after, sample(13, pids=1), 0, None)) == [("SandboxMeasured", "", 0)]
    assert monitor.judge(after, sample(1, pids=6), 0, None) == [ev.SandboxMeasured("c", GIB // 10 + 1, 6, 0, 0, 0)]
    assert said(monitor.judge(after, sample(1, oom_kills=1), 0, None)) == [("SandboxMeasured", "", 0)]


@given(st.lists(st.integers(min_value=0, max_value=100), min_size=1, max_size=300))
def test_a_sandbox_that_swings_says_little(percents: list[int]) -> None:
    """However its memory goes, each second another: no more than three events in any minute."""
    now, told = use(), []
    for second, percent in enumerate(percents):
        time_ns = second * 10**9
        for event in monitor.judge(now, sample(percent), time_ns, None):
            told.append(second)
            assert isinstance(event, ev.LimitNeared | ev.LimitEased)
            level = event.percent if isinstance(event, ev.LimitNeared) else 0
            now = use(*((Near("memory", level, time_ns),) if level else ()))
    assert all(sum(begin <= second < begin + 60 for second in told) <= 5 for begin in told)


@pytest.mark.parametrize(
    ("before", "used", "expected"),
    [
        (0, 79, []),
        (0, 80, [("LimitNeared", "disk", 80)]),
        (80, 100, [("LimitNeared", "disk", 100)]),
        (100, 200, []),
        (100, 99, [("LimitEased", "disk", 0)]),
        (95, 80, []),
    ],
)
def test_the_disk_is_said_to_be_full_and_to_have_room(
    before: int, used: int, expected: list[tuple[str, str, int]]
) -> None:
    near = (Near("disk", before, 0),) if before else ()
    assert said(disk.judge(use(*near), used, 100, 0)) == expected


# ---- version 2: what Linux 6.1 wrote in a virtual machine, since the controllers here are those of version 1


FILES = {
    "memory.current": "23588864\n",
    "memory.max": "67108864\n",
    "memory.high": "max\n",
    "memory.swap.current": "0\n",
    "memory.swap.max": "0\n",
    "memory.stat": "anon 23367680\nfile 90112\nkernel 126976\nkernel_stack 0\npagetables 94208\nsec_pagetables 0\n"
    "percpu 0\nsock 0\nvmalloc 0\nshmem 0\nfile_mapped 0\nfile_dirty 0\nfile_writeback 0\nswapcached 0\n"
    "anon_thp 18874368\nfile_thp 0\nshmem_thp 0\ninactive_anon 23347200\nactive_anon 4096\ninactive_file 81920\n"
    "active_file 8192\nunevictable 0\nslab_reclaimable 0\nslab_unreclaimable 12744\nslab 12744\npgfault 1222\n",
    "memory.events": "low 0\nhigh 126\nmax 35\noom 1\noom_kill 1\noom_group_kill 0\n",
    "cpu.stat": "usage_usec 676811\nuser_usec 260312\nsystem_usec 416499\nnr_periods 16\nnr_throttled 13\n"
    "throttled_usec 618975\nnr_bursts 0\nburst_usec 0\n",
    "pids.current": "1\n",
    "pids.max": "32\n",
}


@pytest.fixture
def unified(tmp_path: Path) -> Group:
    """The folder of a container's control group of version 2."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return Group(2, tmp_path, tmp_path, tmp_path, tmp_path)


def test_version_2_is_read(unified: Group) -> None:
    found = Sample(23_498_752, 64 << 20, 1, 32, 676_811_000, 618_975_000, 1)
    assert cgroup.read(unified) == found
    (unified.memory / "memory.swap.current").write_text("30\n")
    (unified.memory / "memory.swap.max").write_text("100\n")
    (unified.pids / "pids.max").write_text("max\n")
    swapping = msgspec.structs.replace(found, memory_bytes=23_498_782, memory_limit=(64 << 20) + 100, pids_limit=0)
    assert cgroup.read(unified) == swapping
    for name in ("memory.swap.current", "memory.swap.max"):
        (unified.memory / name).unlink()  # a kernel without swap
    assert cgroup.read(unified) == msgspec.structs.replace(found, pids_limit=0)


@pytest.mark.parametrize(("mib", "percent"), [(64, 90), (511, 90), (512, 95), (4096, 95)])
def test_version_2_is_guarded_by_slowing_down(unified: Group, mib: int, percent: int) -> None:
    (unified.memory / "memory.max").write_text(f"{mib << 20}\n")
    assert cgroup.guard(unified, on=True)
    high = int((unified.memory / "memory.high").read_text())
    assert high % 65_536 == 0
    assert 0 <= (mib << 20) * percent // 100 - high < 65_536
    found = cgroup.read(unified)
    assert found is not None
    assert found.guarded
    (unified.memory / "memory.max").write_text(f"{mib << 21}\n")
    assert (found := cgroup.read(unified)) is not None
    assert not found.guarded
    assert cgroup.guard(unified, on=False)
    assert (unified.memory / "memory.high").read_text() == "max"


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"memory.swap.current"}))
def test_a_group_that_vanishes_is_not_read(unified: Group, name: str) -> None:
    (unified.memory / name).unlink()
    assert cgroup.read(unified) is None


@pytest.mark.parametrize("text", ["", "x", "0::/a\n", "4:memory:/../../CONTAINER\n", "0::/x/CONTAINER\n1:cpu:/y"])
def test_a_process_that_is_not_the_containers_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(cgroup, "_PROC", tmp_path)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(text)
    assert cgroup.find("CONTAINER", lambda: 7) is None


def test_a_group_elsewhere_is_found_by_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cgroup"
    monkeypatch.setattr(cgroup, "_PROC", tmp_path)
    monkeypatch.setattr(cgroup, "ROOT", root)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text("0::/user.slice/docker-CONTAINER.scope\n")
    folder = root / "user.slice" / "docker-CONTAINER.scope"
    folder.mkdir(parents=True)
    assert cgroup.find("CONTAINER", lambda: 7) == Group(2, folder, folder, folder, folder)
    lines = "4:memory:/a/CONTAINER\n3:cpu,cpuacct:/a/CONTAINER\n2:pids:/a/CONTAINER\n0::/a/CONTAINER\n"
    (tmp_path / "7" / "cgroup").write_text(lines)
    (root / "memory" / "a" / "CONTAINER").mkdir(parents=True)
    found = cgroup.find("CONTAINER", lambda: 7)
    assert found is not None
    assert (found.version, found.cpuacct) == (1, root / "cpuacct" / "a" / "CONTAINER")
