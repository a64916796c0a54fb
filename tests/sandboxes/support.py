"""What the tests of the sandboxes share: waiting, git, hostile trees, processes that stop at a step, and the CLI."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import docker
import msgspec
import pytest

from sandkeep.events import BlobStore, Record
from sandkeep.sandboxes import Keep, Result, Task, cli, restore, snapshot
from sandkeep.sandboxes.container import KEEP
from sandkeep.sandboxes.door import answers
from sandkeep.sandboxes.snapshot_walk import Snapshot
from sandkeep.sandboxes.vocabulary import NAMED

Json: TypeAlias = Any

SCRIPT = Path(sys.executable).parent / "sandkeep"
WORKER = Path(__file__).with_name("worker.py")
DEADLINE_SECONDS = 30.0

Found = TypeVar("Found")


def eventually(look: Callable[[], Found]) -> Found:
    """Poll until `look()` gives something true, and return that; fail at the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, "the condition did not come to hold"
        time.sleep(0.01)
    return found


def git(folder: Path, *arguments: str) -> str:
    """Run git in `folder` as a user without any configuration would, and return what it says."""
    names = {f"GIT_{role}_{what}": "a@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    configuration = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=os.environ | names | configuration, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(errors="replace").strip()


def make_repository(folder: Path) -> Path:
    """A git repository of one commit with a few files."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "README").write_text("hello\n")
    (folder / "src").mkdir()
    (folder / "src" / "main.py").write_text("print('hello')\n")
    (folder / "run").write_text("#!/bin/sh\necho ran\n")
    (folder / "run").chmod(0o755)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=first")
    return folder


def text(result: Result) -> str:
    """The standard output of a command that went well."""
    assert result.exit_code == 0, result
    assert result.stdout.data is not None
    return result.stdout.data.decode()


def shell(task: Task, line: str, **options: Any) -> str:
    """What a shell line prints in the task's sandbox; it must go well."""
    return text(task.execute(["sh", "-c", line], **options))


def container_of(task: Task) -> str:
    """The container that the log believes to run."""
    container = task.state.container
    assert container is not None
    return container


def status(task: Task) -> str:
    """The engine's word for the state of the task's container."""
    with engine() as client:
        return str(client.containers.get(container_of(task)).status)


def left(task: Task) -> list[str]:
    """What lies in the task's spool beside what belongs to its sandbox."""
    return sorted(path.name for path in task.sandbox.spool.iterdir() if path.name not in ("agent.sock", "sandbox"))


def types(records: Iterator[Record]) -> list[str]:
    """The types of these records."""
    return [record.type for record in records]


@contextlib.contextmanager
def engine() -> Iterator[docker.DockerClient]:
    """A client of the engine, past the library."""
    with contextlib.closing(docker.DockerClient.from_env()) as client:
        yield client


def containers(keep: str) -> list[str]:
    """The ids of the containers of a keep, whatever their state."""
    with engine() as client:
        return [each["Id"] for each in client.api.containers(all=True, filters={"label": f"{KEEP}={keep}"})]


def remove_containers(keep: str) -> None:
    """Remove what is left of a keep in the engine."""
    with engine() as client:
        for container in containers(keep):
            with contextlib.suppress(docker.errors.NotFound):
                client.api.remove_container(container, force=True)


# ---- trees


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[int]:
    """A folder, open as a descriptor."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def take(folder: Path, blobs: BlobStore) -> Snapshot:
    """A snapshot of `folder`."""
    with opened(folder) as root:
        return snapshot.take(root, blobs)


def put_back(folder: Path, target: str, blobs: BlobStore, *, privileges: bool = False) -> tuple[str, ...]:
    """Make `folder` the tree `target`, as a task does it; what was stripped."""
    with opened(folder) as root:
        restore.apply(root, snapshot.take(root, blobs).digest, target, blobs, privileges=privileges)
        return restore.check(snapshot.take(root, blobs).digest, target, blobs, privileges=privileges)


def listing(folder: Path) -> dict[bytes, tuple[object, ...]]:
    """All there is to know of a tree, read without any code of ours: the reference that digests are compared with."""
    found: dict[bytes, tuple[object, ...]] = {}
    for parent, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            content: bytes | None = None
            if stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            mode = stat.S_IFMT(status.st_mode) | (stat.S_IMODE(status.st_mode) & 0o1777)
            relative = os.path.relpath(path, os.fsencode(folder))
            found[relative] = (mode, status.st_uid, status.st_gid, status.st_mtime_ns, content)
    return found


# ---- other processes


class Process:
    """A process that another one forked for us."""

    def __init__(self, number: int) -> None:
        self._descriptor = os.pidfd_open(number)

    def kill(self) -> None:
        """End it without warning."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until it has ended."""
        assert select.select([self._descriptor], [], [], DEADLINE_SECONDS)[0], "it does not end"

    def close(self) -> None:
        """Kill it, and forget it."""
        self.kill()
        self.wait()
        os.close(self._descriptor)


@functools.cache
def worker() -> socket.socket:
    """What `worker` is asked by, which ends when we do."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-P", str(WORKER), str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


@contextlib.contextmanager
def stopped_at(step: str, action: str, keep: Path, *arguments: str) -> Iterator[Process]:
    """A process that does `action` with a keep and has come to the failpoint `step`, where it stays; then killed."""
    reader, writer = os.pipe()
    with open(reader) as output:
        request = json.dumps([dict(os.environ), [step, action, str(keep), *arguments]])
        socket.send_fds(worker(), [request.encode()], [writer])
        os.close(writer)
        with contextlib.closing(Process(int(worker().recv(64)))) as process:
            assert select.select([output], [], [], DEADLINE_SECONDS)[0], f"{step} was not reached"
            assert output.readline() == f"at {step}\n"
            yield process


def run_script(*arguments: str | bytes, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the installed `sandkeep` to its end."""
    return subprocess.run([SCRIPT, *arguments], capture_output=True, timeout=60, check=False, **options)


class Answer:
    """What a verb of the CLI left: exit status and both streams."""

    def __init__(self, status: int, stdout: bytes, stderr: bytes) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr

    @property
    def json(self) -> Json:
        """The one document on standard output."""
        assert self.stdout.endswith(b"\n")
        assert self.stdout.count(b"\n") == 1
        return json.loads(self.stdout)

    def refused(self, code: str, status: int) -> str:
        """The message, having seen that this is an error of one line with that code and exit status."""
        lines = self.stderr.decode().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("sandkeep: ")
        assert lines[0].endswith(f" [{code}]")
        assert self.status == status
        return lines[0]


def as_promised(arguments: Sequence[str], stdout: bytes) -> None:
    """Check that what a verb has printed for machines is of the type that it has in the vocabulary."""
    verb = NAMED.get(arguments[0]) or NAMED[" ".join(arguments[:2])]
    for document in stdout.splitlines() if verb.streams else [stdout]:
        wrong = []
        for each in answers(verb):
            try:
                msgspec.json.decode(document, type=each)
                break
            except msgspec.ValidationError as error:
                wrong.append(f"{each}: {error}")
        else:
            raise AssertionError(f"{verb.name} gave {document[:400]!r}, which is none of {wrong}")


class Cli:
    """The command line, called in this process, on one keep."""

    def __init__(self, keep: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        self.keep = keep
        self._monkeypatch = monkeypatch
        self._capture = capfdbinary
        monkeypatch.setenv("SANDKEEP_KEEP", str(keep))

    def __call__(self, *arguments: str) -> Answer:
        """Run a verb."""
        self._capture.readouterr()
        self._monkeypatch.setattr(sys, "argv", ["sandkeep", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        stdout, stderr = self._capture.readouterr()
        status = ended.value.code
        assert isinstance(status, int)
        if "--json" in arguments and stdout and not stdout.startswith(b'{"error"'):
            as_promised(arguments, stdout)
        return Answer(status, stdout, stderr)

    def documents(self) -> list[Json]:
        """What the log says, record by record."""
        answer = self("events", "--json")
        assert answer.status == 0
        return [json.loads(line) for line in answer.stdout.splitlines()]


def reopened(keep: Keep) -> contextlib.AbstractContextManager[Keep]:
    """The same keep, closed and opened again, as a later process would find it."""
    keep.close()
    return Keep.open(keep.path)
