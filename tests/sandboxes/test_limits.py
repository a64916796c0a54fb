"""What limits may be, and that all that is wrong with them is said at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import BadInput
from sandkeep.sandboxes import limits, quantity
from sandkeep.sandboxes.errors import BadLimits, BadSettings
from sandkeep.sandboxes.limits import LIMITS, NAMES

GIB = 1 << 30


def settings(folder: Path, text: str) -> limits.Settings:
    (folder / "keep.toml").write_text(text)
    return limits.load(folder)


@pytest.mark.parametrize(
    ("written", "bytes"),
    [
        ("2GiB", 2 * GIB),
        ("2G", 2 * GIB),
        ("1.5GiB", 3 * GIB // 2),
        ("500MB", 500_000_000),
        (" 12 KiB ", 12288),
        ("1TiB", 1 << 40),
        ("0", 0),
        (7, 7),
    ],
)
def test_sizes_are_read_as_people_write_them(written: object, bytes: int) -> None:
    assert quantity.size(written) == bytes


@pytest.mark.parametrize(
    ("written", "seconds"), [("90s", 90), ("1.5h", 5400), ("10min", 600), (0.5, 0.5), ("2d", 172_800)]
)
def test_times_are_read_as_people_write_them(written: object, seconds: float) -> None:
    assert quantity.seconds(written) == seconds


@pytest.mark.parametrize(
    "written",
    ["", "GiB", "-1.0", "1e9", "1.G", "1X", "1 2", "2 GiBs", "٣GiB", "1" * 16, True, None, -1, float("nan"), [1]],
)
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(BadInput, match="is no size; write it like 2GiB"):
        quantity.size(written)


@given(st.integers(min_value=0, max_value=2**60))
def test_a_size_is_shown_as_one_that_can_be_read(size: int) -> None:
    assert abs(quantity.size(quantity.show_size(size)) - size) <= size * 0.06


def test_a_keep_without_settings_has_the_defaults(tmp_path: Path) -> None:
    assert settings(tmp_path, 'format = 1\nid = "x"\n') == limits.Settings(LIMITS)


def test_settings_are_read(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        """
        [limits]
        memory = "1GiB"
        cpus = 1.5
        pids = 64
        time = "1h"
        memory_max = "3GiB"
        when_full = "ask"
        answer = "10s"
        on_denied = "stop"
        adaptive = true
        [budget]
        memory = "8GiB"
        wait = 5
        """,
    )
    changed = {"memory_bytes": GIB, "nano_cpus": 1_500_000_000, "pids": 64, "command_ns": 3600 * 10**9}
    assert found.limits == msgspec.structs.replace(LIMITS, **changed)
    assert found.relief == limits.Relief(3 * GIB, ask=True, answer_seconds=10, stop=True)
    assert found.adapting == limits.Adapting(on=True)
    assert found.budget == limits.Budget(8 * GIB, 5)


BAD = """
[limits]
memory = "lots"
memroy = "1GiB"
cpus = 0
pids = 12.5
swap = -1
disk = true
open_files = "nan"
time = "2d"
memory_max = "1GiB"
when_full = "maybe"
adaptive = "yes"
[budget]
memory = "1MiB"
wait = inf
weight = 1
"""


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadSettings) as caught:
        settings(tmp_path, BAD)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'keep.toml'} has 14 errors: ")
    assert "\n" not in said
    for words in (
        "[limits] memory: 'lots' is no size; write it like 2GiB",
        "[limits] memroy: there is no such setting",
        "[limits] cpus: 0 is not from 0.01 to 4096",
        "[limits] pids: 12.5 is no whole number",
        "[limits] swap: '-1' is no size",
        "[limits] disk: 'True' is no size",
        "[limits] open_files: nan is no whole number",
        "[limits] time: 172800 is not from 0.001 to 86400",
        "[limits] memory_max is less than memory, 2GiB",
        '[limits] when_full: \'maybe\' is not "kill" or "ask"',
        "[limits] adaptive: 'yes' is not false or true",
        "[budget] memory: 1MiB is not from 32MiB to 1024TiB",
        "[budget] wait: 'inf' is no time",
        "[budget] weight: there is no such setting",
    ):
        assert words in said


@pytest.mark.parametrize("text", ["limits = 3", "[[limits]]", "[budget", "\udcff"])
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keep.toml").write_bytes(os.fsencode(text))
    with pytest.raises(BadSettings, match=r"keep\.toml"):
        limits.load(tmp_path)


ANY: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=9), ANY, max_size=4))
def test_whatever_is_asked_for_is_a_limit_or_refused(asked: dict[str, object]) -> None:
    try:
        found = limits.chosen(asked, LIMITS)
    except BadLimits as error:
        said = str(error)
    else:
        said = ""
        assert found is None or limits.chosen(limits.document(found), LIMITS) == found
    assert "\n" not in said


def test_what_is_asked_of_a_task_goes_before_the_defaults() -> None:
    assert limits.chosen({"memory": None, "cpus": None}, LIMITS) is None
    found = limits.chosen({"memory": "1GiB", "cpus": "1.5"}, LIMITS)
    assert found == msgspec.structs.replace(LIMITS, memory_bytes=GIB, nano_cpus=1_500_000_000)
    with pytest.raises(BadLimits) as caught:
        limits.chosen({"memory": "1KiB", "pids": 0, "color": 3}, LIMITS)
    assert str(caught.value) == (
        "memory: 1KiB is not from 32MiB to 16TiB; pids: 0 is not from 16 to 4194304;"
        f" 'color' is no limit; those there are: {', '.join(NAMES)}; correct that"
    )


def test_an_image_has_what_all_have_unless_it_says_otherwise(tmp_path: Path) -> None:
    found = settings(
        tmp_path, '[limits]\npids = 64\n[limits.image.developer]\nmemory = "4GiB"\n[limits.image."a:1"]\ncpus = 1'
    )
    developer = msgspec.structs.replace(LIMITS, pids=64, memory_bytes=4 * GIB)
    assert found.of("developer") == found.of("sandkeep/developer:0123456789ab") == developer
    assert found.of("a:1") == msgspec.structs.replace(LIMITS, pids=64, nano_cpus=10**9)
    assert found.of("base") == found.of("a:2") == found.limits
    with pytest.raises(BadSettings) as caught:
        settings(tmp_path, '[limits.image]\nbase = 1\n[limits.image.other]\nmemory = "lots"\nwhen_full = "ask"')
    for words in (
        "3 errors",
        "base is no table",
        "[limits.image.other] memory: 'lots'",
        "[limits.image.other] when_full",
    ):
        assert words in str(caught.value)
