"""Which checkpoints the rules and budgets let go: the choice alone, on made-up checkpoints."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.projections import Checkpoint
from sandkeep.sandboxes import retention
from sandkeep.sandboxes.errors import BadSettings
from sandkeep.sandboxes.retention import Policy, Surplus

HOUR = 3600 * 10**9
NOW = int(datetime.datetime(2026, 3, 1, 12, 30, tzinfo=datetime.UTC).timestamp()) * 10**9


def checkpoint(
    number: int, *, age: int = 0, task: str = "t", pinned: bool = False, tags: tuple[str, ...] = ()
) -> Checkpoint:
    """A checkpoint of this number, taken `age` hours ago."""
    counted = (f"digest {number}", 1, 10, "", (), number, NOW - age * HOUR)
    return Checkpoint(f"{number}", task, *counted, pinned, tags)


def ids(found: Sequence[Surplus]) -> list[str]:
    return [each.checkpoint.id for each in found]


def each_ten(taken: Sequence[Checkpoint]) -> int:
    return 10 * len(taken)


def test_without_rules_and_budgets_all_are_kept() -> None:
    taken = [checkpoint(number, age=100_000 - number) for number in range(50)]
    assert retention.by_rules(Policy(), taken, (), NOW) == []
    assert retention.by_task_budget(Policy(), taken, (), each_ten) == []
    assert retention.by_budget(Policy(), {"t": taken}, {"t": ()}, each_ten) == []


def test_what_any_rule_keeps_is_kept() -> None:
    taken = [checkpoint(number, age=9 - number) for number in range(10)]
    assert ids(retention.by_rules(Policy(keep_last=3), taken, (), NOW)) == ["0", "1", "2", "3", "4", "5", "6"]
    assert ids(retention.by_rules(Policy(keep_for=3 * 3600), taken, (), NOW)) == ["0", "1", "2", "3", "4", "5", "6"]
    assert ids(retention.by_rules(Policy(keep_last=1, keep_for=5 * 3600), taken, (), NOW)) == ["0", "1", "2", "3", "4"]
    assert ids(retention.by_rules(Policy(keep_last=100), taken, (), NOW)) == []


def test_of_each_period_the_newest_is_kept_grandfather_father_son() -> None:
    hours = [70 * 24, 40 * 24, 39 * 24, 20 * 24, 19 * 24, 49, 48, 3, 2, 1, 0]
    taken = [checkpoint(number, age=age) for number, age in enumerate(hours)]
    # 12:30 on a Sunday: of the last two hours, of the last two days, of the last two weeks, of the last three months.
    assert ids(retention.by_rules(Policy(hourly=2), taken, (), NOW)) == [str(n) for n in range(9)]
    assert ids(retention.by_rules(Policy(daily=2), taken, (), NOW)) == ["0", "1", "2", "3", "4", "5", "7", "8", "9"]
    assert ids(retention.by_rules(Policy(weekly=2), taken, (), NOW)) == [str(n) for n in range(10) if n != 4]
    assert ids(retention.by_rules(Policy(monthly=3), taken, (), NOW)) == ["0", "1", "3", "4", "5", "7", "8", "9"]


def test_the_newest_the_pinned_the_tagged_and_the_needed_stay() -> None:
    taken = [checkpoint(0, pinned=True), checkpoint(1, tags=("x",)), checkpoint(2), checkpoint(3), checkpoint(4)]
    old = Policy(keep_for=1)
    late = NOW + 10 * HOUR
    assert ids(retention.by_rules(old, taken, ("2",), late)) == ["3"]
    assert ids(retention.by_task_budget(Policy(task_budget=1), taken, ("2",), each_ten)) == ["3"]
    assert ids(retention.by_budget(Policy(budget=1), {"t": taken}, {"t": ("2",)}, each_ten)) == ["3"]


def test_beyond_a_budget_the_oldest_go_until_it_holds() -> None:
    taken = [checkpoint(number) for number in range(6)]
    assert ids(retention.by_task_budget(Policy(task_budget=30), taken, (), each_ten)) == ["0", "1", "2"]
    assert ids(retention.by_task_budget(Policy(task_budget=60), taken, (), each_ten)) == []
    other = [checkpoint(number, task="o") for number in (10, 11)]
    both = {"o": other, "t": taken}
    found = retention.by_budget(Policy(budget=40), both, dict.fromkeys(both, ()), each_ten)
    assert (ids(found), {each.reason for each in found}) == (["0", "1", "2", "3"], {retention.BUDGET})


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.booleans()), min_size=1, max_size=30),
    st.builds(
        Policy,
        keep_last=st.integers(0, 5),
        keep_for=st.integers(0, 400_000),
        hourly=st.integers(0, 3),
        daily=st.integers(0, 3),
        weekly=st.integers(0, 3),
        monthly=st.integers(0, 3),
    ),
)
def test_what_was_let_go_leaves_nothing_more_to_let_go(found: list[tuple[int, bool]], policy: Policy) -> None:
    """Applied again at the same moment the rules keep what they kept, and never less than the newest and the pinned."""
    ages = sorted(found, reverse=True)
    taken = [checkpoint(number, age=age, pinned=pinned) for number, (age, pinned) in enumerate(ages)]
    gone = ids(retention.by_rules(policy, taken, (), NOW))
    left = [each for each in taken if each.id not in gone]
    assert left[-1] == taken[-1]
    assert all(each in left for each in taken if each.pinned)
    assert len(left) >= min(policy.keep_last, len(taken))
    assert retention.by_rules(policy, left, (), NOW) == []


def test_settings_are_read_and_all_that_is_wrong_is_named(tmp_path: Path) -> None:
    file = tmp_path / "keep.toml"
    file.write_text("format = 1\n")
    assert retention.load(tmp_path) == Policy()
    file.write_text('[checkpoints]\nkeep_last = 3\nkeep_for = "2d"\nweekly = 4\ntask_budget = "1GiB"\nbudget = 5\n')
    assert retention.load(tmp_path) == Policy(3, 2 * 86_400, weekly=4, task_budget=1 << 30, budget=5)
    file.write_text('[checkpoints]\nkeep_last = 1.5\nbudget = "much"\nkeep = 3\n')
    with pytest.raises(BadSettings) as refused:
        retention.load(tmp_path)
    for words in ("keep_last: 1.5 is no whole number", "budget: 'much' is no size", "keep: there is no such setting"):
        assert words in str(refused.value)
