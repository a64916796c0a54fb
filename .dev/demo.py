"""`make demo`: one path through the whole house, on real parts, with this repository as the task's source."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
from rich.console import Console
from rich.table import Table

from sandkeep.events import SandkeepError
from sandkeep.events.catalogue import SandboxLost
from sandkeep.sandboxes import Keep, Task, documents_record, render, show_record
from sandkeep.sandboxes.text import quiet
from sandkeep.sandboxes.verification import verify_log

REPOSITORY = Path(__file__).resolve().parent.parent
TITLE = "Check the house rules of this repository"
JOB = ("python3", "-m", "unittest", "-v", "tests.test_house")

console = Console(highlight=False)
timed: list[tuple[str, float]] = []


class DemoFailed(SandkeepError):
    """Something that the demo claims did not hold."""

    code = "demo-failed"


@contextmanager
def step(name: str) -> Iterator[None]:
    """Say what is done, and take its time for the table at the end."""
    console.rule(f"[bold]{name}", align="left")
    begun = time.perf_counter()
    yield
    timed.append((name, time.perf_counter() - begun))


def show(stream: str, data: bytes) -> None:
    """A command's own output, as it comes."""
    text = "\n".join(render.plain(line).plain for line in data.decode("utf-8", "replace").split("\n"))
    console.print(text, end="", style="bright_black", markup=False, soft_wrap=True)


def must(holds: bool, claim: str) -> None:
    """State a claim, and stop if it does not hold."""
    if not holds:
        raise DemoFailed(f"this does not hold: {claim}")
    console.print(f"[green]✓[/] {claim}")


def run(task: Task, *argv: str) -> None:
    """Run a command in the sandbox, showing its output, and insist that it succeeds."""
    result = task.execute(argv, on_output=show)
    must(result.exit_code == 0, f"'{' '.join(argv)}' ran in the sandbox in {result.duration_s:.2f} s")


def work(folder: Path) -> None:
    """The demo, in a keep of its own below `folder`."""
    with step("create a keep, and a task from this repository"):
        keep = Keep.init(folder / "keep")
        task = keep.create_task(TITLE, source=REPOSITORY)
        console.print(f"task {task.id}, at commit {(task.state.commit or '')[:12]}, without a container yet")
    with step("start its sandbox, as the first command would"), render.progress() as progress:
        task.start_sandbox(progress)
        console.print(f"container {container(task)[:12]}")
    try:
        destroy_and_restore(task)
        with step("kill the container behind the keep's back, and recover"):
            docker.DockerClient.from_env().containers.get(container(task)).kill()
            run(task, "git", "status", "--short", "--branch")
            lost = [record for record in task.history() if isinstance(record.event, SandboxLost)]
            must(len(lost) == 1, "the log says that a sandbox was lost, and a new one works on the same files")
        with step("show the history"):
            show_record.history([documents_record.history_record(each, abandoned=False) for each in task.history()], {})
        digest = digest_of(keep)
    finally:
        keep.close()
    keep = rebuild_projections(folder, digest)
    with keep:
        find_flipped_byte(keep, folder / "copy")
        with step("verify the keep"):
            report = keep.verify()
            must(report.ok, f"{report.events} events and {report.blobs} blobs are what they were")
        with step("complete the task and clean up"):
            task = keep.task(task.id)
            task.complete("the demo is over")
            task.clean_up()
            must(not keep.engine.containers(keep.id), "no container is left")


def destroy_and_restore(task: Task) -> None:
    """A job, a checkpoint, a disaster, and the proof that nothing is missing afterwards."""
    with step("run the repository's own tests in the sandbox"):
        run(task, *JOB)
    with step("take a checkpoint"):
        before = task.checkpoint("before the disaster")
        console.print(f"checkpoint {before.id}: {before.files} files, {before.bytes} bytes, digest {before.digest}")
    with step("let the sandboxed command destroy the workspace"):
        run(task, "find", "/workspace", "-mindepth", "1", "-delete")
        must(not list(task.workspace.iterdir()), "the workspace is empty, .git and all")
    with step("restore the checkpoint"):
        task.restore_checkpoint(before.id)
    with step("prove by tree digest that nothing is missing"):
        after = task.checkpoint("after the restore")
        must(after.digest == before.digest, f"{after.files} files are back; the digest is {after.digest} again")
        run(task, *JOB)


def rebuild_projections(folder: Path, digest: str) -> Keep:
    """Lose everything that is not the log, and have it again."""
    with step("delete the projections, and rebuild them from the log"):
        shutil.rmtree(folder / "keep" / "projections")
        keep = Keep.open(folder / "keep")
        must(digest_of(keep) == digest, f"their digest is {digest} again")
    return keep


def find_flipped_byte(keep: Keep, copy: Path) -> None:
    """Damage a copy of the log by one bit."""
    with step("flip one byte in a copy of the log"):
        keep.log.snapshot(copy / "log")
        file = copy / "log" / "data.mdb"
        data = bytearray(file.read_bytes())
        data[data.index(TITLE.encode())] ^= 1
        file.write_bytes(data)
        report = verify_log(copy, quiet)
        must(not report.ok, f"verify finds it: {report.damage[0]}")


def leave_nothing(folder: Path) -> None:
    """Remove the keep, and the containers of one that a failure cut off."""
    if (folder / "keep" / "keep.toml").exists():
        with Keep.open(folder / "keep") as keep:
            for found in keep.engine.containers(keep.id):
                keep.engine.remove(found.container)
    shutil.rmtree(folder)


def digest_of(keep: Keep) -> str:
    """The digest of what is true now."""
    with keep.projections.reading() as state:
        return keep.projections.digest(state)


def container(task: Task) -> str:
    """The id of the task's container."""
    return task.state.container or ""


def main() -> None:
    """Run the demo in a temporary folder and print what was timed."""
    folder = Path(tempfile.mkdtemp(prefix="sandkeep-demo-"))
    try:
        work(folder)
    except SandkeepError as error:
        sys.exit(f"demo: {error} [{error.code}]")
    finally:
        leave_nothing(folder)
    table = Table("step", "seconds", title="what was timed", title_justify="left")
    table.columns[1].justify = "right"
    for name, seconds in timed:
        table.add_row(name, f"{seconds:.3f}")
    console.print(table)


if __name__ == "__main__":
    main()
