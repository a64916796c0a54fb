"""A task's whole way on each engine, with what goes wrong behind its back."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep.events import catalogue as ev
from sandkeep.projections import TaskState
from sandkeep.sandboxes import Keep, isolation
from sandkeep.sandboxes.doctor import examine, healthy
from sandkeep.sandboxes.engine import INTENT, KEEP, TASK, Engine
from sandkeep.sandboxes.errors import EngineUnsupported

from ..limited import configure
from ..support import container_of, containers, engine, eventually, shell, types

FETCH = """
import os, sys, urllib.request
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ""  # the server is called 127.0.0.1, which is ours alone otherwise
print(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode())
"""


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a web server on the loopback of this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_tasks_whole_way(keep: Keep, source: Path, port: int) -> None:
    configure(keep, f'[network]\nprivate = ["127.0.0.1:{port}"]')
    task = keep.create_task("the whole way", source=source)
    assert shell(task, "git log --oneline | wc -l; echo new >README") == "1\n"
    before = task.checkpoint("before")
    assert task.execute(["sh", "-c", "rm -rf .git *; (setsid sleep 1000 &); sleep 1000"], timeout=1).timed_out
    task.restore_checkpoint(before.id)
    assert shell(task, "cat README; git status --short") == "new\n M README\n"

    fetch = ["python3", "-c", FETCH, f"http://127.0.0.1:{port}/"]
    assert task.execute(fetch).exit_code == 1
    keep.network(task.id).set("allow", private=[f"127.0.0.1:{port}"])
    assert task.execute(fetch).stdout.data == b"hello\n"
    assert types(task.history()).count("ConnectionAllowed") == 1
    assert isolation.check(keep, task).closed

    task.pause()
    assert keep.engine.status(container_of(task)) == "paused"
    task.resume()
    assert shell(task, "cat README") == "new\n"
    task.complete()
    assert containers(keep.id) == []
    task.clean_up()
    assert not task.folder.exists()
    assert task.state.state is TaskState.CLEANED
    assert keep.verify().ok


def test_the_steward_settles_what_happened_behind_its_back(keep: Keep) -> None:
    lost, kept = keep.create_task("lost"), keep.create_task("kept")
    for task in (lost, kept):
        task.start_sandbox()
    with engine() as client:
        labels = {KEEP: keep.id, TASK: lost.id, INTENT: "0" * 16}
        name = f"sandkeep-{lost.id}-{'0' * 16}"
        orphan = client.api.create_container(keep.images.resolve()[1], ["true"], name=name, labels=labels)["Id"]
        client.api.remove_container(container_of(lost), force=True)
    with keep.steward() as running:
        running.hurry()
        eventually(lambda: lost.state.container is None and keep.engine.status(orphan) is None)
    assert containers(keep.id) == [container_of(kept)]
    assert [record.event.reason for record in lost.history() if isinstance(record.event, ev.SandboxLost)]
    assert shell(lost, "echo again") == "again\n"
    assert keep.reconcile(again=True) == []


def test_a_runtime_that_cannot_be_chosen_is_refused(keep: Keep) -> None:
    configure(keep, '[sandboxes]\nruntime = "no-such-runtime"')
    task = keep.create_task("t")
    with pytest.raises(EngineUnsupported, match="no-such-runtime"):
        task.execute(["true"])
    assert (containers(keep.id), task.state.pending) == ([], ())
    configure(keep, f'[sandboxes]\nruntime = "{keep.engine.facts.runtime}"')
    assert shell(task, "echo on") == "on\n"


def test_the_doctor_knows_the_engine_and_finds_nothing_to_do(backend: str, keep: Keep) -> None:
    keep.close()
    found = examine(keep.path, Engine())
    assert healthy(found), found
    assert next(each.what for each in found if each.area == "engine").casefold().startswith(backend)
