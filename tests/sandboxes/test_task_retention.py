"""Checkpoints that expire, in a keep: what goes, what stays, and what is said of it afterwards."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from sandkeep.events import BlobMissing, LimitReached
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Rule
from sandkeep.projections import Checkpoint
from sandkeep.sandboxes import Keep, Task, expiry, verify_bundle
from sandkeep.sandboxes.errors import CheckpointGone, CheckpointNeeded
from sandkeep.sandboxes.limits import LIMITS
from sandkeep.sandboxes.own_workspace import OwnTask
from sandkeep.sandboxes.verification import referenced

from .support import Cli, types

pytestmark = pytest.mark.engine


def policy(keep: Keep, **values: object) -> None:
    """Write the table `[checkpoints]` into the keep's settings."""
    file = keep.path / "keep.toml"
    identity = file.read_text().partition("[checkpoints]")[0]
    file.write_text(identity + "[checkpoints]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items()))


def series(task: Task, count: int, size: int = 100_000) -> list[str]:
    """Checkpoints of a workspace in which one file of noise is another each time; their ids."""
    found = []
    for number in range(count):
        (task.workspace / "file").write_bytes(bytes([number]) * 8 + random_bytes(number, size))
        found.append(task.checkpoint(f"{number}").id)
    return found


def random_bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def idle(keep: Keep) -> Task:
    """A task without a sandbox."""
    return keep.create_task("a test")


def test_what_expired_is_gone_for_good_and_all_else_is_as_it_was(keep: Keep, idle: Task, tmp_path: Path) -> None:
    (idle.workspace / "same").write_bytes(random_bytes(99, 50_000))
    ids = series(idle, 4)
    first = idle.checkpoints()[0]
    policy(keep, keep_last=2)
    assert [each.checkpoint.id for each in expiry.surplus(keep)] == ids[:2]
    assert [each.id for each in idle.checkpoints()] == ids
    told = expiry.tick(keep)
    assert [line.split(": ", 1)[1] for line in told] == [
        f"checkpoint {each} has expired: no rule keeps it" for each in ids[:2]
    ]
    assert [each.id for each in idle.checkpoints()] == ids[2:]
    assert [bool(each.expired_ns) for each in idle.checkpoints(expired=True)] == [True, True, False, False]
    assert types(idle.history())[-2:] == ["CheckpointExpired", "CheckpointExpired"]
    with pytest.raises(CheckpointGone, match=r"has expired \(no rule keeps it\)"):
        idle.restore_checkpoint(ids[0])
    with pytest.raises(CheckpointGone):
        keep.checkpoints(idle.id).pin(ids[0])
    # Within the grace period all is there; after it only what nothing else holds is gone.
    assert keep.collect_garbage() == (0, 0)
    assert keep.blobs.get(first.digest)
    assert first.digest in referenced(keep, 3600.0)
    assert first.digest not in referenced(keep, -1.0)
    for _ in range(2):  # what lies in a pack is condemned first
        keep.collect_garbage(grace_seconds=-1)
    with pytest.raises(BlobMissing):
        keep.blobs.get(first.digest)
    report = keep.verify()
    assert report.ok, report.damage
    assert keep.replay().same
    for wanted in ids[2:]:
        idle.restore_checkpoint(wanted)
        assert (idle.workspace / "same").read_bytes() == random_bytes(99, 50_000)
    bundle = tmp_path / "bundle"
    keep.export_audit(bundle)
    assert verify_bundle(bundle, str(keep.audit_key)).ok
    with pytest.raises(BlobMissing, match="if a checkpoint expired later"):
        keep.export_audit(tmp_path / "part", first=1, last=first.position)
    assert not (tmp_path / "part").exists()
    keep.export_audit(tmp_path / "part", first=1, last=first.position, blobs=False)
    assert verify_bundle(tmp_path / "part", str(keep.audit_key)).ok


def test_a_bundle_must_hold_what_did_not_expire(keep: Keep, idle: Task, tmp_path: Path) -> None:
    ids = series(idle, 2)
    keep.checkpoints(idle.id).expire(ids[0])
    bundle = tmp_path / "bundle"
    keep.export_audit(bundle, task=idle.id)
    kept, gone = idle.checkpoints()[0], idle.checkpoints(expired=True)[0]
    data = bundle.read_bytes()
    assert kept.digest.encode() in data
    assert gone.digest.encode() in data  # in the record of it, and nowhere else
    assert data.count(kept.digest.encode()) == data.count(gone.digest.encode()) + 1
    # A tree that its records vouch for, left out.
    bundle.write_bytes(data.replace(b"CheckpointExpired", b"CheckpointExpireX"))
    assert {each.code for each in verify_bundle(bundle, str(keep.audit_key)).problems} >= {"missing-blob"}


def test_pins_tags_and_the_newest_keep_a_checkpoint(keep: Keep, idle: Task) -> None:
    ids = series(idle, 5)
    mine = keep.checkpoints(idle.id)
    assert mine.pin(ids[0][:6]).pinned
    assert mine.tag(ids[1], add=["release", "good"], remove=["never"]).tags == ("good", "release")
    before = keep.head().position
    mine.pin(ids[0])
    mine.tag(ids[1], add=["good"])
    assert keep.head().position == before
    for each, why in ((ids[0], "it is pinned"), (ids[1], "it has tags"), (ids[4], "the newest of its task")):
        with pytest.raises(CheckpointNeeded, match=why):
            mine.expire(each)
    policy(keep, keep_last=1)
    assert [each.checkpoint.id for each in expiry.expire(keep, expiry.surplus(keep))] == [ids[2], ids[3]]
    assert [each.checkpoint.id for each in mine.list()] == [ids[0], ids[1], ids[4]]
    mine.unpin(ids[0])
    mine.tag(ids[1], remove=["good", "release"])
    assert [each.checkpoint.id for each in expiry.surplus(keep, idle.id)] == [ids[0], ids[1]]


def test_what_was_pinned_after_it_was_chosen_stays(keep: Keep, idle: Task) -> None:
    ids = series(idle, 3, size=10)
    policy(keep, keep_last=1)
    chosen = expiry.surplus(keep)
    keep.checkpoints(idle.id).pin(ids[0])
    assert [each.checkpoint.id for each in expiry.expire(keep, chosen)] == [ids[1]]
    assert [each.id for each in idle.checkpoints()] == [ids[0], ids[2]]


def test_each_checkpoint_adds_what_the_one_before_lacks(keep: Keep, idle: Task) -> None:
    (idle.workspace / "large").write_bytes(random_bytes(1, 3_000_000))
    ids = series(idle, 2)
    (idle.workspace / "large").write_bytes(random_bytes(1, 1_500_000) + b"x" + random_bytes(1, 3_000_000)[1_500_000:])
    ids.append(idle.checkpoint().id)
    ids.append(idle.checkpoint().id)
    (idle.workspace / "file").rename(idle.workspace / "other")
    ids.append(idle.checkpoint().id)
    found = {each.checkpoint.id: each.added for each in keep.checkpoints(idle.id).list()}
    first, second, third, fourth, fifth = (found[each] for each in ids)
    assert first == 3_100_008
    assert 100_000 <= second < 102_000
    assert 0 < third < 600_000  # chunks of the large file, not all of it
    assert fourth == 0
    assert 0 < fifth < 2_000  # its manifest


def test_a_budget_lets_the_oldest_go_and_refuses_when_that_is_not_enough(keep: Keep, idle: Task) -> None:
    policy(keep, task_budget="350KB")
    ids = series(idle, 5)
    # Each was taken after there was room; the last one goes beyond what is kept.
    assert [each.id for each in idle.checkpoints()] == ids[1:]
    assert {each.expired for each in idle.checkpoints(expired=True) if each.expired_ns} == {
        "the task's budget is used up"
    }
    for each in ids[1:]:
        keep.checkpoints(idle.id).pin(each)
    head = keep.head().position
    with pytest.raises(LimitReached, match=r"hold .* more than the 341.8KiB .* raise task_budget"):
        idle.checkpoint()
    assert keep.head().position == head
    keep.checkpoints(idle.id).unpin(ids[1])
    assert idle.checkpoint().id == idle.checkpoints()[-1].id
    # To set it back is always possible, and is recorded first.
    idle.restore_checkpoint(ids[2])


def test_the_budget_of_the_keep_counts_all_tasks(keep: Keep, idle: Task) -> None:
    other = keep.create_task("another")
    mine, theirs = series(idle, 3), series(other, 3)
    policy(keep, budget="450KB")
    expiry.tick(keep)
    assert [each.id for each in idle.checkpoints()] == mine[2:]
    assert [each.id for each in other.checkpoints()] == theirs
    policy(keep, budget="150KB")
    with pytest.raises(LimitReached, match="the checkpoints of all tasks together"):
        idle.checkpoint()
    assert [each.id for each in other.checkpoints()] == theirs[2:]


def test_the_verbs(keep: Keep, idle: Task, cli: Cli) -> None:
    ids = series(idle, 3, size=10)
    keep.close()
    taken = cli("checkpoint", idle.id, "--pin", "--tag", "release", "--label", "four", "--json").json
    assert (taken["pinned"], taken["tags"], taken["commands"], taken["expired"]) == (True, ["release"], 0, None)
    assert cli("pin-checkpoint", idle.id, ids[0], "--json").json["pinned"] is True
    assert cli("unpin-checkpoint", idle.id, ids[0], "--json").json["pinned"] is False
    assert cli("tag-checkpoint", idle.id, ids[1], "--add", "x", "--json").json["tags"] == ["x"]
    listed = cli("list-checkpoints", idle.id)
    assert [line.split()[0].decode() for line in listed.stdout.splitlines()[1:]] == [*ids, taken["id"]]
    assert b"four  pinned  #release" in listed.stdout
    assert cli("expire-checkpoints", idle.id, ids[1]).refused("checkpoint-needed", 1)
    gone = cli("expire-checkpoints", idle.id, ids[0], "--reason", "too large", "--json").json
    assert gone == [{"task": idle.id, "checkpoint": ids[0], "reason": "too large"}]
    assert cli("restore-checkpoint", idle.id, ids[0]).refused("checkpoint-gone", 2)
    assert len(cli("list-checkpoints", idle.id, "--json").json) == 3
    shown = cli("list-checkpoints", idle.id, "--all", "--json").json
    assert [each["reason"] for each in shown] == ["too large", None, None, None]
    (keep.path / "keep.toml").open("a").write("[checkpoints]\nkeep_last = 1\n")
    would = cli("expire-checkpoints", "--dry-run", "--json").json
    assert [each["checkpoint"] for each in would] == [ids[2]]
    assert cli("expire-checkpoints", idle.id).stdout.split()[1].decode() == ids[2]
    assert cli("expire-checkpoints", idle.id, "--json").json == []


def test_garbage_is_collected_once_an_hour_for_a_while_after_something_expired(
    keep: Keep, idle: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: list[float] = []

    def collect(self: Keep, grace_seconds: float) -> tuple[int, int]:
        collected.append(grace_seconds)
        return 3, 2048

    monkeypatch.setattr(Keep, "collect_garbage", collect)
    ids = series(idle, 2, size=10)
    assert (expiry.tick(keep), collected) == ([], [])
    keep.checkpoints(idle.id).expire(ids[0])
    assert expiry.tick(keep) == ["removed 3 blobs that nothing refers to, 2KiB"]
    assert (expiry.tick(keep), collected) == ([], [3600.0])
    stamp = keep.path / "run" / "collected"
    for ago, count in ((2 * 3600, 2), (-4 * 3600, 2)):  # a while ago; later than what expired could need
        os.utime(stamp, (time.time() - ago,) * 2)
        expiry.tick(keep)
        assert len(collected) == count


def test_a_task_that_runs_short_of_memory_is_recorded_beyond_its_budget(keep: Keep, idle: Task) -> None:
    ids = series(idle, 1)
    policy(keep, task_budget="50KB")
    with pytest.raises(LimitReached):
        idle.checkpoint()
    asked = ev.ExtensionRequested("x", "c", 1, 1, 2, ev.Lease("gone", 0))
    begun = [ev.SandboxRequested("i", "image", LIMITS), ev.SandboxStarted("i", "c")]
    keep.log.append(f"task/{idle.id}", [*begun, asked], actor="tester")
    taken = idle.checkpoint()
    assert [each.id for each in idle.checkpoints()] == [*ids, taken.id]


def test_an_own_workspace_is_made_of_nothing_that_expired(
    keep: Keep, idle: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep.conflicts(idle.id).set_rules([Rule("*", "own-workspace")])
    take = Task.checkpoint

    def expiring(task: Task, label: str) -> Checkpoint:
        found = take(task, label)
        take(task, "another")
        monkeypatch.setattr(Task, "checkpoint", take)
        keep.checkpoints(task.id).expire(found.id)
        return found

    with idle.lock("collaborative", agent="ann", session="ann") as held:
        mine = held.task
        assert isinstance(mine, OwnTask)
        monkeypatch.setattr(Task, "checkpoint", expiring)
        with pytest.raises(CheckpointGone):
            mine.own()
        own = mine.own()
        (base,) = (fork.checkpoint for fork in keep.own_workspaces(idle.id).list())
        idle.checkpoint()
        with pytest.raises(CheckpointNeeded, match=f"the own workspace {own.id} was made from it"):
            keep.checkpoints(idle.id).expire(base)
    idle.checkpoint()
    keep.checkpoints(idle.id).expire(base)
