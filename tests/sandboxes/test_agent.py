"""The agent in its sandbox: what hostile programs do to it, and what they get."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sandkeep.events import BadInput
from sandkeep.events import catalogue as ev
from sandkeep.projections import TaskState
from sandkeep.sandboxes import Keep, Task, agent, background, workspace
from sandkeep.sandboxes.container import AGENT, GUEST
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.errors import CommandNotFound, SandboxGone, TaskBusy, TaskRefused
from sandkeep.sandboxes.execution import FLOODED, TIMED_OUT, content
from sandkeep.sandboxes.guest.supervisor import Supervisor
from sandkeep.sandboxes.guest.wire import Channel
from sandkeep.sandboxes.limits import LIMITS
from sandkeep.sandboxes.spool import Ended

from .support import container_of, engine, eventually, left, shell, text, types

pytestmark = pytest.mark.engine

PYTHON = ["python3", "-c"]


def inside(task: Task) -> list[str]:
    """The command lines of all processes of the sandbox that are not the agent's."""
    with engine() as client:
        found = client.api.top(container_of(task), ps_args="-eo pid,args")["Processes"]
    return [line for _, line in found if "/run/sandkeep/agent" not in line]


def unharmed(task: Task, container: str) -> None:
    """Everything of the hostile program is gone, the sandbox is the same one, and the next command works."""
    eventually(lambda: inside(task) == [])
    assert shell(task, "echo alive") == "alive\n"
    assert container_of(task) == container
    assert left(task) == []


# ---- ending


BOMB = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
DYING = "import os\nfor _ in range(200):\n    if os.fork():\n        os._exit(0)\nimport time; time.sleep(1000)"
CHAIN = "import os\nos.fork()\nwhile True:\n    if os.fork():\n        os._exit(0)"
SESSIONS = "import os, time\nwhile True:\n    try:\n        if os.fork() == 0:\n            os.setsid()\n"
SESSIONS += (
    "            os.getpid() % 3 or os._exit(0)\n            time.sleep(1000)\n    except OSError:\n        pass"
)
HOSTILE = {
    "a fork bomb": [*PYTHON, BOMB],
    "forks that leave their parents": ["sh", "-c", f"python3 -c '{DYING}' & sleep 1000"],
    "one that ends everything it may": ["sh", "-c", "trap '' TERM; kill -9 -1; sleep 1000"],
    "one that ignores every signal": [
        *PYTHON,
        "import signal, time\nfor n in set(signal.valid_signals()) - {9, 19}:\n    signal.signal(n, signal.SIG_IGN)\n"
        "time.sleep(1000)",
    ],
    "as many sessions as there may be, and many dead": [*PYTHON, SESSIONS],
    "a chain of forks": ["sh", "-c", f"python3 -c '{CHAIN}' & sleep 1000"],
    "one that closes every descriptor": [*PYTHON, "import os, time; os.closerange(0, 65536); time.sleep(1000)"],
    "a subreaper of its own": [
        *PYTHON,
        "import ctypes, os, time\nctypes.CDLL(None).prctl(36, 1)\nfor _ in range(5):\n    os.fork()\n"
        "os.setsid() if os.getpid() != os.getsid(0) else 0\ntime.sleep(1000)",
    ],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_tree_is_ended_alone(task: Task, what: str) -> None:
    container = container_of(task)
    result = task.execute(HOSTILE[what], timeout=1)
    assert (result.exit_code, result.timed_out) == (TIMED_OUT, True)
    unharmed(task, container)


def test_killing_everything_spares_the_agent_and_its_supervisors(task: Task) -> None:
    container = container_of(task)
    assert task.execute([*PYTHON, "import os; print('first', flush=True); os.kill(-1, 9)"]).stdout.data == b"first\n"
    code = "import os\nfor pid in map(int, filter(str.isdigit, os.listdir('/proc'))):\n"
    code += "    try:\n        pid == os.getpid() or os.kill(pid, 9) or print('killed', pid)\n"
    code += "    except OSError as error:\n        assert error.errno == 1, error"
    assert text(task.execute([*PYTHON, code])) == ""
    unharmed(task, container)


def test_a_bomb_left_behind_gives_way_to_the_next_command(task: Task) -> None:
    container = container_of(task)
    code = f"import os\nif os.fork() == 0:\n    os.setsid()\n    exec({BOMB!r})"
    assert task.execute([*PYTHON, code], timeout=60).exit_code == 0
    results = [task.execute(["sh", "-c", "echo $(echo alive)"], timeout=60) for _ in range(8)]
    assert results[-1].stdout.data == b"alive\n"
    assert container_of(task) == container


def test_a_supervisor_that_is_killed_takes_its_command_along(task: Task) -> None:
    container = container_of(task)

    def kill(name: str, data: bytes) -> None:
        with engine() as client:
            found = client.api.top(container, ps_args="-eo pid,ppid,args")["Processes"]
        (parent,) = {int(ppid) for _, ppid, args in found if "sleep 1000" in args and args.startswith("sh")}
        os.kill(parent, 9)

    result = task.execute(["sh", "-c", "echo begun; setsid sleep 1000; true"], on_output=kill)
    assert (result.exit_code, result.stdout.data) == (137, b"begun\n")
    executed = list(task.history())[-1].event
    assert isinstance(executed, ev.CommandExecuted)
    assert executed.reason == "lost"
    unharmed(task, container)


def test_what_cannot_be_ended_alone_is_ended_with_all_of_its_user(task: Task) -> None:
    container = container_of(task)
    started = task.start(["sh", "-c", "trap '' TERM; setsid sleep 1000 & sleep 1000"])
    code = "import sys; sys.path.insert(0, '/run/sandkeep/agent')\n"
    code += "from sandkeep.sandboxes.guest import processes\n"
    code += f"processes.end_user({workspace.owner()[0]})\nimport os; print(os.getresuid())"
    with engine() as client:
        done = client.containers.get(container).exec_run(["python3", "-c", code], user="0")
    assert (done.exit_code, done.output) == (0, b"(0, 0, 0)\n")
    result = started.wait(60)
    assert result is not None
    assert result.exit_code == 137
    unharmed(task, container)


def test_a_sandbox_of_which_all_was_ended_can_be_used_at_once(task: Task) -> None:
    container = container_of(task)
    task.start(["sleep", "1000"])
    with task.sandbox.working(lambda: None, lambda message: None) as place:
        pass
    with place:
        place.end_all()
    assert shell(task, "echo alive") == "alive\n"
    assert container_of(task) == container
    assert inside(task) == []


# ---- memory


HOG = f"x = bytearray({LIMITS.memory_bytes} + 2**26); x[::4096] = b'x' * len(x[::4096])"
HOGS = {
    "itself": (HOG, 137),
    "child": (f"import os\nif os.fork() == 0:\n    {HOG}\nos.wait()", 0),
    "grandchild": (
        f"import os\nif os.fork() == 0:\n    if os.fork() == 0:\n        {HOG}\n    os.wait(); os._exit(0)\nos.wait()",
        0,
    ),
}


@pytest.mark.parametrize("who", HOGS)
def test_a_kill_for_want_of_memory_is_told(task: Task, who: str) -> None:
    container = container_of(task)
    code, status = HOGS[who]
    result = task.execute([*PYTHON, code], timeout=120)
    assert (result.oom_killed, result.exit_code) == (True, status)
    assert not task.execute(["true"]).oom_killed
    unharmed(task, container)


def test_a_kill_for_want_of_memory_is_told_of_nobody_beside_it(task: Task) -> None:
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(task.execute, ["sh", "-c", "touch begun; while ! [ -e stop ]; do sleep 0.05; done"])
        eventually((task.workspace / "begun").exists)
        assert task.execute([*PYTHON, HOG], timeout=120).oom_killed
        (task.workspace / "stop").touch()
        assert not beside.result().oom_killed


# ---- output


def test_a_flood_that_nobody_reads_is_ended_where_it_must(
    task: Task, monkeypatch: pytest.MonkeyPatch, keep: Keep
) -> None:
    monkeypatch.setattr("sandkeep.sandboxes.spool.OUTPUT_BYTES", 10_000_000)
    container = container_of(task)
    result = task.execute(["sh", "-c", "(setsid yes &); yes >&2"], timeout=60)
    assert result.exit_code == FLOODED
    assert max(result.stdout.size, result.stderr.size) == 10_000_000
    assert b"y\n" * 1000 in content(result.stderr, keep.blobs) + content(result.stdout, keep.blobs)
    unharmed(task, container)


def test_a_reader_that_stalls_loses_nothing(task: Task, keep: Keep) -> None:
    came = bytearray()

    def slow(name: str, data: bytes) -> None:
        came.extend(data)
        if len(came) == len(data):
            time.sleep(3)

    code = "import sys\nfor n in range(3_000_000):\n    sys.stdout.write(f'{n}\\n')"
    result = task.execute([*PYTHON, code], on_output=slow, timeout=120)
    expected = b"".join(b"%d\n" % n for n in range(3_000_000))
    assert bytes(came) == expected
    assert content(result.stdout, keep.blobs) == expected


def test_streams_are_binary_and_apart(task: Task, keep: Keep) -> None:
    code = (
        "import os\nfor n in range(2000):\n    os.write(1, bytes(range(256))); os.write(2, bytes(range(255, -1, -1)))"
    )
    result = task.execute([*PYTHON, code])
    assert content(result.stdout, keep.blobs) == bytes(range(256)) * 2000
    assert content(result.stderr, keep.blobs) == bytes(range(255, -1, -1)) * 2000


def test_a_child_that_is_left_behind_neither_delays_nor_is_hurt_by_a_closed_stream(task: Task) -> None:
    line = "(while ! [ -e go ]; do sleep 0.02; done; head -c 1000000 /dev/zero && touch done) & echo x"
    assert task.execute(["sh", "-c", line], timeout=60).stdout.data == b"x\n"
    (task.workspace / "go").touch()
    eventually((task.workspace / "done").exists)


# ---- snooping


def test_the_task_cannot_come_near_the_agent(task: Task) -> None:
    code = """
import os, socket
tried = ['/run/sandkeep/spool', '/run/sandkeep/spool/agent.sock', '/run/sandkeep']
for pid in filter(str.isdigit, os.listdir('/proc')):
    if open(f'/proc/{pid}/cmdline', 'rb').read().startswith(b'python3\\0-I\\0-S\\0/run/sandkeep/agent'):
        tried += [f'/proc/{pid}/{name}' for name in ('environ', 'fd', 'root', 'cwd', 'mem', 'maps', 'root/run')]
refused = 0
for path in tried:
    for how in (os.listdir, open, os.readlink):
        try:
            print('read', path, how(path))
        except PermissionError:
            refused += 1
        except OSError:
            pass
assert refused > 20, refused
try:
    socket.socket(socket.AF_UNIX).connect('/run/sandkeep/spool/agent.sock')
    print('connected')
except PermissionError:
    pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(16, 1, 0, 0) == -1
print(len(tried) > 10)
"""
    assert text(task.execute([*PYTHON, code])) == "True\n"


def test_who_is_not_the_agent_is_not_talked_to(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    container = container_of(task)
    monkeypatch.setattr("sandkeep.sandboxes.workspace.owner", lambda: (0, 0))  # as if the task's user listened there
    assert agent.connect(task.sandbox.spool, container) is None


def test_an_agent_of_another_sandbox_is_not_talked_to(task: Task) -> None:
    assert agent.greet(task.sandbox.spool, "0" * 64) is None
    connection = agent.connect(task.sandbox.spool, "0" * 64)
    assert connection is not None
    with connection:
        connection.run("ab12", agent.Spec(("true",), "/", {}, 1, 1))
        with pytest.raises(agent.Refused, match="other-sandbox"):
            connection.next(10)


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff\x00",
        b"\x00\x00\x00\x02\x00{}",
        b"\x00\x00\x00\x02\x09{}",
        b"\x00\x00\x00\x04\x00null",
        b"\x00",
        b"\x00\x00\x0f\xa0\x00" + b"[" * 4000,
        b'\x00\x00\x00\x20\x00{"version":2,"op":"end","id":"x"}',
        b'\x00\x00\x00\x19\x00{"version":99,"op":"run"}',
    ],
)
def test_nonsense_does_not_hurt_the_agent(shared_task: Task, said: bytes) -> None:
    connection = agent.connect(shared_task.sandbox.spool, container_of(shared_task))
    assert connection is not None
    with connection:
        connection.sock.sendall(said)
    assert shell(shared_task, "echo alive") == "alive\n"


def test_no_command_is_run_twice(task: Task) -> None:
    spec = agent.Spec(("sh", "-c", "echo x >>ran; sleep 0.2"), "/workspace", {}, 10, 1000)
    first, again, later = (agent.connect(task.sandbox.spool, container_of(task)) for _ in range(3))
    assert first is not None
    assert again is not None
    assert later is not None
    with first, again, later:
        first.run("ab12", spec)
        assert first.next(10) is not None
        again.run("ab12", spec)
        with pytest.raises(agent.Refused, match="known"):
            again.next(10)
        assert isinstance(first.next(10), Ended)
        later.run("ab12", spec)
        with pytest.raises(agent.Refused, match="known"):
            later.next(10)
    assert (task.workspace / "ran").read_text() == "x\n"
    task.sandbox.forget("ab12")


def test_a_command_that_was_ended_before_it_began_never_begins(task: Task) -> None:
    first, then = (agent.connect(task.sandbox.spool, container_of(task)) for _ in range(2))
    assert first is not None
    assert then is not None
    with first, then:
        first.end("ab12", "abandoned")
        said = first.next(10)
        assert isinstance(said, agent.Message)
        assert said.event == "unknown"
        then.run("ab12", agent.Spec(("touch", "ran"), "/workspace", {}, 10, 1000))
        with pytest.raises(agent.Refused, match="known"):
            then.next(10)
    assert not (task.workspace / "ran").exists()


# ---- input


def test_input_is_given_and_recorded(task: Task, keep: Keep) -> None:
    for data in (b"", b"a\n\xff\0", os.urandom(3_000_000)):
        result = task.execute(["sh", "-c", "wc -c; cat >/dev/null"], stdin=data)
        assert int(text(result)) == len(data)
        requested = next(r.event for r in reversed(list(task.history())) if isinstance(r.event, ev.CommandRequested))
        assert requested.stdin is not None
        assert content(requested.stdin, keep.blobs) == data
    assert keep.verify().ok


def test_input_from_a_file_is_streamed_and_exact(task: Task, keep: Keep) -> None:
    data = os.urandom(8_000_000)
    result = task.execute(["cat"], stdin=io.BytesIO(data))
    assert content(result.stdout, keep.blobs) == data
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as source, ThreadPoolExecutor(1) as pool:
        running = pool.submit(task.execute, ["sh", "-c", "read a; echo got $a; cat"], stdin=source)
        os.write(writer, b"one\n")
        os.write(writer, b"two\n")
        os.close(writer)
        assert running.result().stdout.data == b"got one\ntwo\n"


def test_a_command_need_not_read_its_input(task: Task) -> None:
    assert task.execute(["true"], stdin=bytes(5_000_000), timeout=60).exit_code == 0
    assert task.execute(["sleep", "1000"], stdin=bytes(5_000_000), timeout=0.5).timed_out
    assert text(task.execute(["sh", "-s", "--", "a b"], stdin=b'echo "$1"')) == "a b\n"


def test_secrets_are_hidden_in_input(task: Task) -> None:
    task.execute(["cat"], stdin=b"say sesame", secrets={"WORD": "sesame"})
    requested = next(r.event for r in reversed(list(task.history())) if isinstance(r.event, ev.CommandRequested))
    assert requested.stdin is not None
    assert (requested.stdin.data, requested.secrets) == (b"say [secret WORD]", ("WORD",))


def test_many_commands_at_once(task: Task) -> None:
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda n: shell(task, f"echo {n}; echo err >&2"), range(48)))
    assert results == [f"{n}\n" for n in range(48)]


# ---- in the background


def test_a_command_in_the_background_is_listed_read_and_stopped(keep: Keep, task: Task) -> None:
    started = task.start(["sh", "-c", "echo begun; setsid sleep 1000"])
    eventually(lambda: started.output() == b"begun\n")
    (found,) = task.running()
    assert (found.id, found.request.argv) == (started.id, started.request.argv)
    assert found.wait(0.1) is None
    assert keep.reconcile(again=True) == []
    assert [pending.kind for pending in task.state.pending] == ["CommandRequested"]
    with pytest.raises(TaskBusy):
        task.pause()
    result = found.stop()
    assert (result.exit_code, result.stdout.data) == (137, b"begun\n")
    assert inside(task) == []
    assert (task.running(), task.state.pending, left(task)) == ([], (), [])
    assert started.wait() == result
    executed = list(task.history())[-1].event
    assert isinstance(executed, ev.CommandExecuted)
    assert executed.reason == "stopped"


def test_a_command_in_the_background_that_has_ended_is_recorded_by_who_finds_it(keep: Keep, task: Task) -> None:
    started = task.start(["sh", "-c", "echo said; exit 3"])
    eventually(lambda: (task.sandbox.spool / f"{started.id}.end").exists())
    assert len(keep.reconcile(again=True)) == 1
    result = started.wait()
    assert result is not None
    assert (result.exit_code, result.stdout.data, task.running()) == (3, b"said\n", [])
    with pytest.raises(BadInput, match="no command"):
        background.find(keep, task.id, started.id)


def test_a_task_that_ends_takes_its_background_along(task: Task) -> None:
    task.start(["sleep", "1000"])
    task.complete()
    assert task.state.state is TaskState.COMPLETED
    assert "CommandExecuted" in types(task.history())


def test_a_command_in_the_background_that_lost_its_sandbox_is_settled(keep: Keep, task: Task) -> None:
    started = task.start(["sleep", "1000"])
    keep.engine.remove(container_of(task))
    assert shell(task, "echo alive") == "alive\n"
    with pytest.raises(SandboxGone):
        started.wait(60)
    assert task.state.pending == ()


def test_what_cannot_be_started_is_said_so(task: Task) -> None:
    with pytest.raises(CommandNotFound):
        task.start(["nothing-of-that-name"])
    assert (task.state.pending, task.running()) == ((), [])


# ---- terminals


def in_terminal(task: Task, argv: list[str], keys: bytes) -> bytes:
    shown = bytearray()
    task.terminal(argv, io.BytesIO(keys), lambda name, data: shown.extend(data), lambda: (40, 100), timeout=60)
    return bytes(shown)


def test_a_terminal_is_one(task: Task) -> None:
    shown = in_terminal(
        task,
        ["sh", "-c", "tty; stty size; read a; echo got $a; test -w $(tty) && echo mine; echo /proc/self/fd/*"],
        b"hello\n",
    )
    # No other descriptor; the last is the folder that is read.
    assert b" ".join(b"/proc/self/fd/%d" % number for number in range(4)) + b"\r\n" in shown
    assert b"/dev/pts/" in shown
    assert b"40 100" in shown
    assert b"got hello" in shown
    assert b"mine" in shown
    requested = next(r.event for r in reversed(list(task.history())) if isinstance(r.event, ev.CommandRequested))
    assert requested.terminal


def test_a_terminal_interrupts_and_ends(task: Task) -> None:
    reader, writer = os.pipe()
    shown = bytearray()

    def interrupt(name: str, data: bytes) -> None:
        shown.extend(data)
        if data.startswith(b"ready"):
            os.write(writer, b"\x03")

    line = "trap 'echo got; exit 3' INT; echo ready; while :; do sleep 0.1; done"
    with open(reader, "rb", buffering=0) as keyboard:
        result = task.terminal(["sh", "-c", line], keyboard, interrupt, lambda: (40, 100), timeout=60)
    os.close(writer)
    assert (result.exit_code, bytes(shown)) == (3, b"ready\r\n^Cgot\r\n")
    assert b"bye" in in_terminal(task, ["sh", "-c", "cat; echo bye"], b"typed\n")


def test_a_terminal_follows_the_size_of_its_window(task: Task) -> None:
    sizes = [(40, 100)]
    timer = threading.Timer(1, lambda: sizes.append((10, 20)))
    timer.start()
    line = "while [ \"$(stty size)\" != '10 20' ]; do sleep 0.1; done; echo seen"
    shown = bytearray()
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as keyboard:
        result = task.terminal(
            ["sh", "-c", line], keyboard, lambda name, data: shown.extend(data), lambda: sizes[-1], timeout=60
        )
    os.close(writer)
    assert (result.exit_code, bytes(shown)) == (0, b"seen\r\n")


def test_a_sandbox_of_an_older_version_is_followed_by_one_with_an_agent(keep: Keep, task: Task) -> None:
    os.chown(task.sandbox.spool, *workspace.owner())
    task.sandbox.spool.chmod(0o700)
    keep.engine.remove(container_of(task))
    assert shell(task, "echo alive") == "alive\n"
    assert keep.engine.form(container_of(task)) == AGENT


# ---- supervisors


def supervisors(task: Task) -> dict[int, int]:
    """The supervisors of a sandbox, by pid on the host, and how many files each has open."""
    with engine() as client:
        processes = client.api.top(container_of(task), ps_args="-eo pid,ppid,args")["Processes"]
        first = client.api.inspect_container(container_of(task))["State"]["Pid"]
    opened: dict[int, int] = {}
    for pid, ppid, _ in processes:
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            opened |= {int(pid): len(os.listdir(f"/proc/{pid}/fd"))} if int(ppid) == first else {}
    return opened


def test_a_supervisor_serves_one_command_after_another_and_keeps_nothing_of_them(task: Task) -> None:
    task.execute(["true"])
    before = eventually(lambda: found if len(found := supervisors(task)) == 2 else None)
    for number in range(10):
        assert task.execute(["sh", "-c", "echo $mine; cat; echo x >&2"], env={"mine": f"{number}"}, stdin=b"in").stdout
        assert text(task.execute(["sh", "-c", "echo ${mine-none}"])) == "none\n"
        with pytest.raises(CommandNotFound):
            task.execute(["no-such-program"])
        assert task.execute(["sleep", "1000"], timeout=0.05).timed_out
    eventually(lambda: supervisors(task) == before)


def test_time_and_kills_are_told_of_the_command_that_they_were_of(task: Task) -> None:
    def used() -> int:
        executed = list(task.history())[-1].event
        assert isinstance(executed, ev.CommandExecuted)
        return executed.cpu_ns

    task.execute([*PYTHON, "import time\nwhile time.process_time() < 0.5: pass"])
    assert used() > 400_000_000
    for _ in range(4):  # each of the spare ones comes to its turn
        assert not task.execute(["true"]).oom_killed
        assert used() < 300_000_000


def test_supervisors_that_are_too_many_are_let_go(task: Task) -> None:
    task.execute(["true"])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: task.execute(["sleep", "1"]), range(8)))
    eventually(lambda: len(supervisors(task)) == 2)


def test_who_asks_a_supervisor_for_what_it_served_before_gets_no_other_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that is asked for the moment that its supervisor goes on: the agent has passed the caller on by then."""
    monkeypatch.setattr(Supervisor, "prepare", lambda self: True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    caller, passed = socket.socketpair()
    channel = Channel(passed)
    socket.send_fds(ours, [b'{"op": "attach", "follow": false}'], [channel.sock.fileno()])
    ours.send(b'{"op": "end", "reason": "starved"}')
    channel.sock.close()
    giver, given = socket.socketpair()
    Channel(giver).say(argv=["true"])
    socket.send_fds(ours, [b'{"op": "run", "id": "next", "alone": true}'], [given.fileno()])
    given.close()
    command = Supervisor(theirs, {"uid": 1000, "gid": 1000}, {}, 0)
    assert command.asked({"event": "ended", "id": "last"}) == {"argv": ["true"]}
    assert command.id == "next"
    assert caller.recv(100).endswith(b'{"event": "ended", "id": "last"}')
    assert caller.recv(100) == b""
    for each in (ours, theirs, caller, giver, command.giver.sock):
        each.close()


# ---- helpers


def test_a_helper_is_kept_running_where_the_task_cannot_reach_it(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    start: Callable[..., str] = Engine.start

    def helped(self: Engine, *arguments: Any, **named: Any) -> str:
        return start(self, *arguments, **named, helpers=[["sh", "-c", "echo $$ >/tmp/helper; exec sleep 777"]])

    monkeypatch.setattr(Engine, "start", helped)
    task = keep.create_task("helped")
    task.start_sandbox()

    def helper() -> dict[str, str]:
        with engine() as client:
            found = client.api.top(container_of(task), ps_args="-eo pid,uid,args")["Processes"]
        return {pid: uid for pid, uid, args in found if args == "sleep 777"}

    ((pid, uid),) = eventually(helper).items()
    assert uid == "65534"
    assert "Operation not permitted" in shell(task, "kill -9 $(cat /tmp/helper) 2>&1; kill -9 -1 2>&1; true")
    assert task.execute(["sleep", "1000"], timeout=0.3).timed_out
    assert list(helper()) == [pid]
    os.kill(int(pid), 9)
    eventually(lambda: [found for found in helper() if found != pid])


# ---- ways to it


def test_an_agent_whose_socket_cannot_be_reached_is_talked_to_through_the_engine(
    keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "connect", lambda folder, sandbox: None)
    task = keep.create_task("far away")
    assert shell(task, "echo alive; cat", stdin=b"input") == "alive\ninput"
    assert task.execute(["sleep", "1000"], timeout=0.5).timed_out
    started = task.start(["sh", "-c", "echo begun; sleep 1000"])
    eventually(lambda: started.output() == b"begun\n")
    assert started.stop().exit_code == 137
    came: list[bytes] = []
    task.execute(["seq", "100000"], on_output=lambda name, data: came.append(data))
    assert b"".join(came) == b"".join(b"%d\n" % n for n in range(1, 100_001))
    eventually(lambda: inside(task) == [])
    eventually(lambda: "sandkeep-relay" not in [thread.name for thread in threading.enumerate()])


def test_without_python_commands_are_run_by_the_engine(
    keep: Keep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sandkeep.sandboxes.container._COMMANDS", {form: ["no-python"] for form in (AGENT, GUEST)})
    task = keep.create_task("old ways")
    task.start_sandbox()
    assert "cannot run the agent" in caplog.text
    assert shell(task, "echo alive; echo $((6 * 7))", on_output=lambda name, data: None) == "alive\n42\n"
    assert task.execute(["sh", "-c", "exit 3"]).exit_code == 3
    with pytest.raises(CommandNotFound):
        task.execute(["nothing-of-that-name"])
    result = task.execute(["sh", "-c", "setsid sleep 1000 & sleep 1000"], timeout=0.5)
    assert (result.exit_code, result.timed_out) == (TIMED_OUT, True)
    for refused in (lambda: task.start(["true"]), lambda: task.execute(["cat"], stdin=b"x")):
        with pytest.raises(TaskRefused, match="has no Python"):
            refused()
    assert "sleep" not in str(inside(task))
    assert task.state.pending == ()
    with pytest.raises(KeyboardInterrupt):
        task.execute(["sh", "-c", "echo x; sleep 1000"], on_output=interrupted)
    assert "sleep" not in str(inside(task))
    assert types(task.history())[-1] == "CommandFailed"


def interrupted(name: str, data: bytes) -> None:
    raise KeyboardInterrupt


def test_output_is_told_of_that_comes_while_what_was_before_is_read(task: Task) -> None:
    theirs, ours = os.pipe()
    shown: list[bytes] = []

    def answer(name: str, data: bytes) -> None:
        shown.append(data)
        if b"".join(shown).endswith(b"asked\n"):
            os.write(ours, b"asked\n")

    os.write(ours, b"asked\n")
    talk = "import sys\nfor n in range(300):\n sys.stdin.readline()\n for w in ('heard', 'asked'): print(w, flush=True)"
    with open(theirs, "rb", buffering=0) as keyboard:
        result = task.execute(["python3", "-uc", talk], stdin=keyboard, on_output=answer, timeout=60)
    os.close(ours)
    assert (result.exit_code, b"".join(shown)) == (0, b"heard\nasked\n" * 300)
