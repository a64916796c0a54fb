"""What is said of the machine that sandboxes share: its memory, its means and its clocks."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from sandkeep.sandboxes import Keep, Task, machine
from sandkeep.sandboxes.ledger import Amount, Promise
from sandkeep.sandboxes.machine import Said

from .support import Cli

GIB = 1 << 30
NOON = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC).timestamp()


def promise(keep: str, gib: int) -> Promise:
    return Promise(keep, "t", Amount(gib * GIB, 2_000_000_000, 512))


def words(said: list[Said]) -> list[tuple[str, bool]]:
    """What was found, and whether something should be done."""
    assert all(advice for _, _, advice, act in said if act)
    return [(what, act) for _, what, _, act in said]


def test_who_was_promised_what_is_said_by_keep() -> None:
    promises = [promise("ours", 2), promise("other", 3), promise("ours", 2)]
    assert words(list(machine.shares("ours", promises, Amount(8 * GIB), 10 * GIB, 9 * GIB))) == [
        ("10GiB, 9GiB of it available now; of the 8GiB that sandboxes may have, 7GiB are promised", False),
        ("this keep was promised: 2 sandboxes, 4GiB, 4 processors, 1024 processes", False),
        ("keep 'other' was promised: 1 sandbox, 3GiB, 2 processors, 512 processes", False),
    ]
    (over, *_) = machine.shares("ours", promises, Amount(6 * GIB), 10 * GIB, None)
    assert words([over]) == [("10GiB; of the 6GiB that sandboxes may have, 7GiB are promised", True)]
    *_, short = machine.shares("ours", [], Amount(6 * GIB), 10 * GIB, GIB // 4)
    assert words([short]) == [("256MiB of memory are left", True)]
    *_, odd = machine.shares("ours", [promise("\x1b[31m", 1)], Amount(6 * GIB), 10 * GIB, None)
    assert odd[1].startswith(r"keep '\x1b[31m' was promised: 1 sandbox")


@pytest.mark.parametrize(
    ("info", "watched", "root", "expected"),
    [
        ({"CgroupVersion": "1"}, True, True, ["cgroup v1: what runs short of memory is held until somebody answers"]),
        (
            {"CgroupVersion": "2"},
            None,
            True,
            ["cgroup v2: what runs short of memory is slowed down before it is ended"],
        ),
        ({"CgroupVersion": "2"}, True, False, ["cgroup v2: what runs short of memory in less than a second is ended"]),
        ({"CgroupVersion": "2"}, False, True, ["cgroup v2: held by the kernel, but not found here"]),
        ({"SwapLimit": False, "CpuCfsQuota": False}, True, True, ["", "limits no swap", "limits no processors"]),
    ],
)
def test_by_which_means_limits_are_held(
    info: dict[str, object], watched: bool | None, root: bool, expected: list[str]
) -> None:
    said = list(machine.means(info, watched, root))
    assert all(part in what for part, (_, what, _, _) in zip(expected, said, strict=True))


@pytest.mark.parametrize(
    ("engine", "last", "expected"),
    [
        ("2026-01-31T12:00:00.123456789Z", 0, []),
        ("2026-01-31T13:00:04+01:00", 4, []),
        ("", 0, []),
        ("2026-01-31T12:01:00Z", 0, ["the engine's clock and ours are 58 s apart"]),
        ("2026-01-31T11:59:00Z", 0, ["the engine's clock and ours are 60 s apart"]),
        ("2026-01-31T12:00:01Z", 3602, ["the last event is 3600 s in the future"]),
    ],
)
def test_clocks_that_are_apart_and_were_set_back_are_said(engine: str, last: float, expected: list[str]) -> None:
    said = words(list(machine.clocks(engine, NOON, NOON + 2, NOON + last)))
    assert [act for _, act in said] == [True] * len(expected)
    assert all(what.startswith(part) for part, (what, _) in zip(expected, said, strict=True))


@pytest.mark.engine
def test_the_doctor_says_it_of_a_real_machine(keep: Keep, task: Task, cli: Cli) -> None:
    keep.close()
    answer = cli("doctor", "--json")
    found = {(each["area"], each["what"]) for each in answer.json["findings"]}
    assert any(area == "machine" and "that sandboxes may have" in what for area, what in found)
    ours = "this keep was promised: 1 sandbox, 2GiB, 2 processors, 512 processes"
    assert ("machine", ours) in found
    assert any(area == "limits" and what.startswith("cgroup v") for area, what in found)
    assert [what for area, what in found if area == "clocks"] == []
    assert answer.json["ok"] is True


@pytest.mark.engine
def test_a_bad_host_toml_is_a_finding(keep: Keep, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep.close()
    (tmp_path / "host.toml").write_text("[budget]\nmemory = 1\n")
    monkeypatch.setenv("SANDKEEP_HOST", str(tmp_path))
    answer = cli("doctor", "--json")
    assert (answer.status, answer.json["ok"]) == (1, False)
    (found,) = [each for each in answer.json["findings"] if each["area"] == "machine"]
    assert "host.toml has an error: [budget] memory: 1B is not from 32MiB" in found["what"]
