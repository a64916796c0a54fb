"""Agents with workspaces of their own: real sandboxes, locks and merges."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandkeep.events import BadInput, StaleFence
from sandkeep.events.catalogue import Rule
from sandkeep.projections import NetworkPolicy, TaskState
from sandkeep.sandboxes import Held, Keep, Task, restore, survey
from sandkeep.sandboxes.errors import (
    EngineFailed,
    LockHeld,
    TaskBusy,
    TaskRefused,
    WorkspaceNotFound,
    WorkspaceUnmerged,
)
from sandkeep.sandboxes.merging import Merged
from sandkeep.sandboxes.own_workspace import OwnTask

from .agents import lines
from .limited import configure
from .support import Cli, container_of, containers, engine, eventually, listing, make_repository, shell

pytestmark = pytest.mark.engine


def put(task: Task, path: str, content: str) -> None:
    """A file in the task's own folder, as a command would leave it."""
    shell(task, f"mkdir -p $(dirname {path}); cat >{path} <<'end'\n{content}end")


def attach(task: Task, agent: str, **options: float) -> Held:
    return task.lock("collaborative", agent=agent, session=agent, timeout=30, **options)


def merged(held: Held) -> Merged:
    """What became of the own workspace when its agent detached."""
    found = held.release()
    assert found is not None
    return found


def kinds(found: Merged) -> list[tuple[str, str, str]]:
    return [(each.kind, each.path, each.taken) for each in found.conflicts]


@pytest.fixture
def shared(keep: Keep, task: Task) -> Task:
    """A task with a file of nine lines, whose agents work in workspaces of their own."""
    put(task, "file", lines())
    keep.conflicts(task.id).set_rules([Rule("*.ask", "ask"), Rule("*", "own-workspace")])
    return task


@pytest.fixture
def two(shared: Task) -> tuple[Held, Held]:
    """Ann and Bob, attached to it."""
    return attach(shared, "ann"), attach(shared, "bob")


def assert_nothing_is_left(keep: Keep, task: Task) -> None:
    """Log, engine and disk agree, and of own workspaces only the record is left."""
    assert keep.own_workspaces(task.id).list() == []
    assert keep.reconcile(again=True) == []
    live = [each for each in keep.tasks(*TaskState) if each.container]
    assert sorted(containers(keep.id)) == sorted(str(each.container) for each in live)
    for each in keep.tasks(*TaskState):
        assert each.pending == ()
        if each.parent is not None:
            assert each.state is TaskState.CLEANED
            assert not keep.task(each.id).folder.exists()
    assert keep.verify().ok
    assert keep.replay().same


# ---- working apart, and together again


def test_each_sees_only_its_own_work_until_it_is_merged(keep: Keep, shared: Task, two: tuple[Held, Held]) -> None:
    ann, bob = two
    assert shell(ann.task, "sed -i 's/line 2/ann/' file; pwd") == "/workspace\n"
    assert shell(bob.task, "cat file") == lines()
    shell(bob.task, "sed -i 's/line 8/bob/' file")
    assert (shared.workspace / "file").read_text() == lines()
    assert shell(shared, "cat file") == lines()
    own = {fork.agent: fork.task for fork in keep.own_workspaces(shared.id).list()}
    assert [keep.task(own[name]).state.parent for name in ("ann", "bob")] == [shared.id] * 2
    assert keep.task(own["ann"]).state.owner == "ann"
    first, second = merged(ann), merged(bob)
    assert (first.agent, first.own, first.conflicts) == ("ann", own["ann"], ())
    assert kinds(second) == [("same-file", "file", "merged")]
    assert second.conflicts[0].others == ("ann",)
    assert (shared.workspace / "file").read_text() == lines(l2="ann", l8="bob")
    assert "1 collided, 0 of them still open" in str(second)
    assert_nothing_is_left(keep, shared)
    shared.complete()
    shared.clean_up()


def test_an_own_workspace_has_the_caches_that_its_task_was_given(keep: Keep) -> None:
    configure(keep, '[caches]\npip = { mode = "read-write" }\nnpm = { tasks = "all" }\n')
    given = keep.create_task("t", caches=["pip"]), keep.create_task("none", caches=None)
    for task in given:
        keep.conflicts(task.id).set_rules([Rule("*", "own-workspace")])
        ann = attach(task, "ann")
        assert isinstance(ann.task, OwnTask)
        assert keep.caches.of(ann.task.own().id) == keep.caches.of(task.id)
        merged(ann)
    assert [len(keep.caches.of(task.id)) for task in given] == [2, 0]


def test_an_own_workspace_reaches_what_its_task_may_also_when_that_changes(keep: Keep, shared: Task) -> None:
    keep.network(shared.id).set("allow", allow=["example.org"], services=[f"db=task/{shared.id}:5432"])
    ann = attach(shared, "ann")
    assert "3128" in shell(ann.task, "echo $https_proxy")
    (own,) = keep.own_workspaces(shared.id).list()
    assert keep.network(own.task).policy() == keep.network(shared.id).policy() != NetworkPolicy()
    keep.network(shared.id).set("none")
    assert keep.network(own.task).policy() == NetworkPolicy()
    assert shell(ann.task, "echo $https_proxy") == "\n"
    merged(ann)
    assert_nothing_is_left(keep, shared)


def test_what_both_changed_stays_open_with_both_sides(keep: Keep, shared: Task, two: tuple[Held, Held]) -> None:
    ann, bob = two
    shell(ann.task, "sed -i 's/line 2/ann/' file")
    shell(bob.task, "sed -i 's/line 2/bob/' file")
    merged(ann)
    found = merged(bob)
    (conflict,) = found.conflicts
    assert kinds(found) == [("same-region", "file", "")]
    sides = [keep.blobs.get(side.digest).decode() for side in (conflict.base, conflict.ours, conflict.theirs) if side]
    assert sides == [lines(), lines(l2="bob"), lines(l2="ann")]
    assert [each.id for each in keep.conflicts_of("ann")] == [conflict.id]
    keep.conflicts(shared.id).resolve(conflict.id, "theirs")
    assert (shared.workspace / "file").read_text() == lines(l2="ann")
    assert_nothing_is_left(keep, shared)


def test_who_comes_later_is_told_of_the_merge(keep: Keep, shared: Task, two: tuple[Held, Held]) -> None:
    keep.actor = "eve"
    shell(shared, "true")
    shell(two[0].task, "rm file; touch a b")
    merged(two[0])
    news = shared.execute(["true"]).news
    assert news is not None
    assert news.changed == {"ann": 3}


@pytest.mark.parametrize(
    ("strategy", "taken", "content"),
    [("reject", "theirs", "ann\n"), ("last-writer-wins", "ours", "bob\n"), ("ask", "", "bob\n")],
)
def test_the_other_rules_settle_what_collides(
    keep: Keep, shared: Task, two: tuple[Held, Held], strategy: str, taken: str, content: str
) -> None:
    keep.conflicts(shared.id).set_rules([Rule("*", "own-workspace"), Rule("fi*", strategy)])
    for held, name in zip(two, ("ann", "bob"), strict=True):
        shell(held.task, f"echo {name} >file")
    merged(two[0])
    assert kinds(merged(two[1])) == [("same-region", "file", taken)]
    assert (shared.workspace / "file").read_text() == content


def test_everything_that_can_be_in_a_workspace_is_merged(keep: Keep, shared: Task) -> None:
    shell(shared, "mkdir -p gone/deep old; for i in 1 2 3; do echo $i >old/$i; done; echo x >gone/deep/x; echo m >mode")
    shell(shared, "head -c 3000 /dev/urandom >binary; ln -s old link; echo moved >from")
    ann, bob = attach(shared, "ann"), attach(shared, "bob")
    shell(ann.task, "rm -r gone; mv from to; chmod 755 mode; ln -sfn /etc/passwd link; mkdir -p empty/er; rm old/1")
    shell(ann.task, "head -c 3000 /dev/urandom >binary; mkfifo pipe; mkdir -p new/folder; echo y >new/folder/y")
    shell(
        bob.task, "echo two >old/2; rm old/3; head -c 3000 /dev/urandom >binary; ln -sfn elsewhere link; echo b >from"
    )
    with_ann = {path: entry[:3] + entry[4:] for path, entry in listing(ann.task.workspace).items()}
    merged(ann)
    assert {path: entry[:3] + entry[4:] for path, entry in listing(shared.workspace).items()} == with_ann
    found = merged(bob)
    assert sorted(kinds(found)) == [("rename", "from", ""), ("same-file", "binary", ""), ("same-file", "link", "")]
    assert sorted(os.listdir(shared.workspace / "old")) == ["2"]
    assert os.readlink(shared.workspace / "link") == "elsewhere"
    (link,) = (each for each in found.conflicts if each.path == "link")
    keep.conflicts(shared.id).resolve(link.id, "theirs")
    assert os.readlink(shared.workspace / "link") == "/etc/passwd"
    assert_nothing_is_left(keep, shared)


def test_a_merge_can_be_undone(keep: Keep, shared: Task, two: tuple[Held, Held]) -> None:
    before = listing(shared.workspace)
    shell(two[0].task, "rm file; mkdir x; touch x/y")
    found = merged(two[0])
    assert not (shared.workspace / "file").exists()
    shared.restore_checkpoint(found.undo)
    assert listing(shared.workspace) == before
    assert [each.id for each in keep.task(found.own).checkpoints()] == [found.checkpoint]


def test_what_is_too_large_to_be_kept_is_merged_and_what_collides_is_open(
    keep: Keep, shared: Task, two: tuple[Held, Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "MAX_KEPT_BYTES", 1000)
    for held, name in zip(two, ("ann", "bob"), strict=True):
        shell(held.task, f"yes {name} | head -n 900 >large; yes {name} | head -n 900 >{name}")
    assert merged(two[0]).conflicts == ()
    (found,) = merged(two[1]).conflicts
    assert (found.path, found.taken) == ("large", "")
    assert (shared.workspace / "large").read_text() == "bob\n" * 900
    keep.conflicts(shared.id).resolve(found.id, "theirs")
    assert (shared.workspace / "large").read_text() == "ann\n" * 900
    assert (shared.workspace / "ann").read_text() == "ann\n" * 900
    assert (shared.workspace / "bob").read_text() == "bob\n" * 900
    assert_nothing_is_left(keep, shared)


def test_commits_of_both_are_there_and_what_is_checked_out_stays_whole(
    keep: Keep, tmp_path_factory: pytest.TempPathFactory
) -> None:
    task = keep.create_task("commit", source=make_repository(tmp_path_factory.mktemp("git") / "source"))
    keep.conflicts(task.id).set_rules([Rule("*", "own-workspace")])
    ann, bob = attach(task, "ann"), attach(task, "bob")
    commit = "git -c user.name=n -c user.email=e commit -q -m"
    ids = [
        shell(held.task, f"echo {name} >{name}; git add .; {commit} {name}; git rev-parse HEAD").strip()
        for held, name in ((ann, "ann"), (bob, "bob"))
    ]
    assert merged(ann).conflicts == ()
    assert shell(task, "git status --porcelain; git rev-parse HEAD") == f"{ids[0]}\n"
    found = merged(bob)
    assert kinds(found) == [("branch", ".git/refs/heads/main", "")]
    assert shell(task, f"git status --porcelain; git rev-parse HEAD; git cat-file -t {ids[1]}") == (
        f"?? bob\n{ids[0]}\ncommit\n"
    )
    shell(task, f"git add .; {commit} merged; git -c user.name=n -c user.email=e merge -q -m both {ids[1]}")
    keep.conflicts(task.id).resolve(found.conflicts[0].id, "theirs")
    assert shell(task, "git log -1 --format=%s") == "both\n"
    eve = attach(task, "eve")
    shell(eve.task, f"echo eve >eve; git add .; {commit} eve")
    assert merged(eve).conflicts == ()
    assert shell(task, "git status --porcelain; git log -1 --format=%s") == "eve\n"
    assert_nothing_is_left(keep, task)


# ---- who may do what


def test_who_holds_it_alone_or_has_no_token_works_in_the_shared_one(keep: Keep, shared: Task) -> None:
    shell(shared, "touch without")
    with shared.lock("exclusive") as held:
        assert not isinstance(held.task, OwnTask)
        shell(held.task, "touch alone")
    with attach(shared, "ann") as held:
        keep.conflicts(shared.id).set_rules([Rule("*", "ask")])
        shell(held.task, "touch without-rule")
    names = sorted(os.listdir(shared.workspace))
    assert names == ["alone", "file", "without", "without-rule"]
    assert len(keep.tasks(*TaskState)) == 1


def test_what_is_not_of_the_workspace_is_the_tasks(keep: Keep, shared: Task) -> None:
    held = attach(shared, "ann")
    held.task.tag(add=["x"])
    held.task.record_decision("use it")
    assert len(keep.tasks(*TaskState)) == 1  # nothing needed a workspace so far
    taken = held.task.checkpoint("mine")
    shell(held.task, "echo more >>file")
    assert [each.path for each in held.task.diff(taken.id)] == ["file"]
    held.task.restore_checkpoint(taken.id)
    assert held.task.diff(taken.id) == []
    assert held.task.workspace != shared.workspace
    assert (held.task.workspace / "file").read_text() == lines()
    assert [each.label for each in held.task.checkpoints()][:1] == ["mine"]
    assert shared.state.tags == ("x",)
    with pytest.raises(WorkspaceUnmerged):
        held.task.complete()
    assert merged(held).written == 0


def test_an_own_workspace_has_the_limits_of_its_task(keep: Keep, shared: Task) -> None:
    keep.resources(shared.id).set({"memory": "300MiB", "pids": 77})
    held = attach(shared, "ann")
    assert isinstance(held.task, OwnTask)
    shell(held.task, "true")
    with engine() as client:
        found = client.api.inspect_container(container_of(held.task.own()))["HostConfig"]
    assert (found["Memory"], found["PidsLimit"]) == (300 << 20, 77)


def test_an_own_workspace_is_nobody_elses(keep: Keep, shared: Task, two: tuple[Held, Held]) -> None:
    ann, bob = two
    shell(ann.task, "touch mine")
    (fork,) = keep.own_workspaces(shared.id).list()
    with pytest.raises(LockHeld, match="is the own workspace of ann"):
        keep.task(fork.task).execute(["touch", "theirs"])
    for token in (bob.token, 10**6):
        with pytest.raises(StaleFence, match="not the token of the own workspace"):
            keep.task(fork.task, token).execute(["touch", "theirs"])
    with keep.task(fork.task).lock() as held, pytest.raises(StaleFence):
        held.task.execute(["touch", "theirs"])
    mine = keep.task(fork.task, ann.token)
    ends: tuple[Callable[[], None], ...] = (mine.complete, lambda: mine.fail("x"))
    for end in ends:
        with pytest.raises(WorkspaceUnmerged):
            end()
    assert shell(mine, "ls") == "file\nmine\n"
    assert len(keep.task(fork.task).checkpoint().torn) == 0  # to look is allowed


def test_who_has_lost_the_lock_can_do_nothing_in_it(keep: Keep, shared: Task) -> None:
    ann = attach(shared, "ann")
    mine = ann.task
    shell(mine, "touch mine")
    keep.locking.take_away(shared.id, "she sleeps")
    (fork,) = keep.own_workspaces(shared.id).list()
    for task in (mine, ann.task, keep.task(fork.task, ann.token)):
        with pytest.raises(StaleFence):
            task.execute(["touch", "late"])
    checkpoint = keep.task(fork.task).checkpoint()
    with pytest.raises(StaleFence):
        mine.restore_checkpoint(checkpoint.id)
    with pytest.raises(StaleFence):
        ann.release()
    assert sorted(os.listdir(keep.task(fork.task).workspace)) == ["file", "mine"]
    done = keep.own_workspaces(shared.id).merge("ann")
    assert (done.own, done.written) == (fork.task, 1)
    with pytest.raises(StaleFence):
        mine.execute(["touch", "later"])
    assert_nothing_is_left(keep, shared)


def test_a_paused_task_lets_nobody_work_in_it(keep: Keep, shared: Task, two: tuple[Held, Held]) -> None:
    shell(two[0].task, "touch mine")
    shared.pause()
    for held in two:
        with pytest.raises(TaskRefused, match="paused"):
            held.task.execute(["true"])
    shared.resume()
    assert shell(two[0].task, "ls") == "file\nmine\n"


def test_a_rule_that_separates_is_for_the_whole_task(keep: Keep, task: Task) -> None:
    with pytest.raises(BadInput, match="is for the pattern '\\*' only"):
        keep.conflicts(task.id).set_rules([Rule("src/*", "own-workspace")])


# ---- agents that vanish, and merges that cannot be


def test_a_task_with_unmerged_work_cannot_end(keep: Keep, shared: Task, two: tuple[Held, Held]) -> None:
    for held, name in zip(two, ("ann", "bob"), strict=True):
        shell(held.task, f"echo {name} >{name}")
        with pytest.raises(LockHeld, match="still works in the own workspace"):
            keep.own_workspaces(shared.id).merge(name)
    keep.locking.take_away(shared.id, "they are gone")
    ends: tuple[Callable[[], None], ...] = (shared.complete, lambda: shared.fail("x"))
    for end in ends:
        with pytest.raises(WorkspaceUnmerged, match=f"'sandkeep merge {shared.id} "):
            end()
    own = keep.own_workspaces(shared.id)
    for which in (None, "eve", "", "0" * 12):
        with pytest.raises(WorkspaceNotFound):
            own.merge(which)
    first, second = own.list()
    own.merge(first.task[:6])
    done = own.merge(discard=True)
    assert (done.own, done.agent, done.undo) == (second.task, "bob", "")
    assert "discarded" in str(done)
    assert sorted(os.listdir(shared.workspace)) == ["ann", "file"]
    (kept,) = keep.task(second.task).checkpoints()
    assert (kept.id, kept.files) == (done.checkpoint, 2)
    assert_nothing_is_left(keep, shared)
    shared.complete()
    shared.clean_up()


def test_nobody_merges_past_an_exclusive_lock(keep: Keep, shared: Task) -> None:
    ann = attach(shared, "ann")
    shell(ann.task, "touch mine")
    keep.locking.take_away(shared.id, "she is gone")
    with shared.lock("exclusive") as held:
        with pytest.raises(LockHeld):
            keep.own_workspaces(shared.id).merge()
        keep.own_workspaces(shared.id, held.token).merge()
    assert (shared.workspace / "mine").exists()


@pytest.mark.parametrize("where", ["own", "shared"])
def test_nothing_is_merged_while_commands_run(keep: Keep, shared: Task, where: str) -> None:
    held = attach(shared, "ann")
    shell(held.task, "touch mine")
    task = held.task if where == "own" else shared
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            task.execute, ["sh", "-c", "touch begun; while ! [ -e go ]; do sleep 0.05; done"], timeout=60
        )
        eventually((task.workspace / "begun").exists)
        with pytest.raises(TaskBusy):
            held.release()
        assert isinstance(held.task, OwnTask)
        assert held.task.forked is not None  # still attached, with everything in place
        shell(held.task, "ls")
        (task.workspace / "go").touch()
        assert running.result().exit_code == 0
    assert merged(held).written >= 1
    assert_nothing_is_left(keep, shared)


def test_one_that_cannot_be_made_is_gone_and_the_next_use_makes_another(
    keep: Keep, shared: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: object) -> str:
        raise EngineFailed("it does not start")

    held = attach(shared, "ann")
    with monkeypatch.context() as patch:
        patch.setattr(restore, "fill", failing)
        with pytest.raises(EngineFailed):
            held.task.execute(["true"])
    assert keep.own_workspaces(shared.id).list() == []
    shell(held.task, "touch mine")
    assert [record.type for record in shared.history(types=["WorkspaceForked"])] == ["WorkspaceForked"] * 2
    assert merged(held).written == 1
    assert_nothing_is_left(keep, shared)


def test_two_threads_of_an_agent_have_one_workspace(keep: Keep, shared: Task) -> None:
    held = attach(shared, "ann")
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(shell, held.task, f"touch {number}") for number in range(4)]
        assert [each.result() for each in done] == [""] * 4
    assert len(keep.own_workspaces(shared.id).list()) == 1
    assert merged(held).written == 4


def test_an_agent_may_merge_and_go_on(keep: Keep, shared: Task) -> None:
    held = attach(shared, "ann")
    shell(held.task, "touch first")
    keep.own_workspaces(shared.id, held.token).merge()
    assert shell(held.task, "ls; touch second") == "file\nfirst\n"
    merged(held)
    assert sorted(os.listdir(shared.workspace)) == ["file", "first", "second"]
    assert_nothing_is_left(keep, shared)


def test_what_the_host_changed_is_nobodys_and_collides_all_the_same(keep: Keep, shared: Task) -> None:
    held = attach(shared, "ann")
    shell(held.task, "echo ann >file")
    (shared.workspace / "file").write_text("host")
    (found,) = merged(held).conflicts
    assert (found.agents, found.others, found.taken) == (("ann",), (), "")
    assert found.theirs is not None
    assert keep.blobs.get(found.theirs.digest) == b"host"


# ---- the command line


def test_the_command_line(keep: Keep, shared: Task, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    keep.close()
    tokens = {
        name: cli("attach", shared.id, "--mode", "collaborative", "--agent", name).stdout.decode().strip()
        for name in ("ann", "bob")
    }
    monkeypatch.setenv("SANDKEEP_TOKEN", tokens["ann"])
    said = cli("execute", shared.id, "--", "sh", "-c", "echo ann >file").stderr.decode()
    document = cli("execute", shared.id, "--json", "--", "cat", "file").json
    own = document["own_workspace"]
    assert (document["stdout"], said.startswith(f"sandkeep: this ran in a workspace of its own, task {own};")) == (
        "ann\n",
        True,
    )
    assert cli("execute", shared.id, "--", "true").stderr == b""
    checkpoint = cli("checkpoint", shared.id, "--json").json
    assert checkpoint["task"] == own
    assert cli("restore-checkpoint", shared.id, checkpoint["id"], "--json").status == 0
    monkeypatch.setenv("SANDKEEP_TOKEN", tokens["bob"])
    cli("execute", shared.id, "--", "sh", "-c", "echo bob >file")
    forks = cli("show-task", shared.id, "--json").json["own_workspaces"]
    assert [(each["task"] == own, each["agent"]) for each in forks] == [(True, "ann"), (False, "bob")]
    assert own.encode() in cli("show-task", shared.id).stdout
    assert (
        f"{shared.id}  detached\nann's own workspace {own} was merged: "
        in cli("detach", shared.id, "--token", tokens["ann"]).stdout.decode()
    )
    monkeypatch.delenv("SANDKEEP_TOKEN")
    cli("complete-task", shared.id).refused("workspace-unmerged", 1)
    cli("merge", shared.id).refused("lock-held", 1)
    cli("merge", shared.id, "eve").refused("workspace-not-found", 2)
    cli("break-lock", shared.id, "--reason", "gone")
    done = cli("merge", shared.id, "bob", "--json").json
    assert (done["agent"], [each["kind"] for each in done["conflicts"]]) == ("bob", ["same-region"])
    assert done["conflicts"][0]["id"] in cli("conflicts", shared.id).stdout.decode()
    cli("conflict-policy", shared.id, "x=own-workspace").refused("bad-input", 2)
    assert cli("complete-task", shared.id).status == 0
    assert cli("cleanup-task", shared.id).status == 0
    assert cli("verify", "--json").json["ok"]


def test_a_lease_that_ran_out_leaves_the_work_to_be_merged(keep: Keep, shared: Task) -> None:
    held = keep.locking.acquire(shared.id, mode="collaborative", agent="ann", lease=5, heartbeat=False)
    shell(held.task, "touch mine")
    deadline = time.monotonic() + 60
    while keep.locks() and time.monotonic() < deadline:
        keep.reconcile(again=True)
        time.sleep(0.2)
    with pytest.raises(StaleFence):
        held.task.execute(["touch", "late"])
    keep.own_workspaces(shared.id).merge()
    assert sorted(os.listdir(shared.workspace)) == ["file", "mine"]
    assert_nothing_is_left(keep, shared)
