"""A Docker engine of a test's own, to be killed and started again: the one that everybody uses is left alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import docker

from sandkeep.sandboxes.image import ensure
from sandkeep.sandboxes.recipe import Recipe

ROOT = () if os.getuid() == 0 else ("sudo", "-n")
SECONDS = 60.0
_BRIDGE = Path("/sys/class/net/docker0")

_CONTAINERD = """version = 2
root = "{0}/containerd"
state = "{0}/run"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{0}/containerd.sock"
"""


class PrivateEngine:
    """A dockerd with data and socket of its own, without any network. Its containerd is a service beside it, as on most
    hosts, and goes on when it is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/sock"
        self._live_restore = False
        (folder / "containerd.toml").write_text(_CONTAINERD.format(folder))
        self._containerd = self._run("containerd", f"--config={folder}/containerd.toml", "--log-level=error")
        self._dockerd = self._containerd

    def start(self, *, live_restore: bool) -> None:
        """Start it, and wait until it answers."""
        self._live_restore = live_restore
        folder = self.folder
        self._dockerd = self._run(
            # In a network namespace of its own: an engine without a bridge removes the host's docker0, whosever it is.
            *(
                "unshare",
                "--net",
                "dockerd",
                "--bridge=none",
                "--iptables=false",
                "--ip-masq=false",
                "--ip-forward=false",
            ),
            *(f"--live-restore={str(live_restore).lower()}", f"--containerd={folder}/containerd.sock"),
            *(f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid"),
            *(f"--host={self.host}", "--log-level=error"),
        )
        deadline = time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(docker.errors.DockerException), self.client() as client:
                client.ping()
                return
            assert self._dockerd.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the private engine does not answer"
            time.sleep(0.05)

    def kill(self) -> None:
        """End it without warning. Its containers go on."""
        self._signal("KILL", (self.folder / "pid").read_text())
        self._dockerd.wait(SECONDS)

    def restart(self) -> None:
        """Start it as it was before."""
        (self.folder / "pid").unlink(missing_ok=True)
        self.start(live_restore=self._live_restore)

    @contextlib.contextmanager
    def client(self) -> Iterator[docker.DockerClient]:
        """A client of it."""
        with contextlib.closing(docker.DockerClient(base_url=self.host)) as client:
            yield client

    def stop(self) -> None:
        """End it with all its containers, and wait for that."""
        if self._dockerd.poll() is not None:
            self.restart()
        with self.client() as client:
            for each in client.api.containers(all=True):
                client.api.remove_container(each["Id"], force=True)
        for process in (self._dockerd, self._containerd):
            self._signal("TERM", str(process.pid))
            process.wait(SECONDS)

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen([*ROOT, *command], stdout=log, stderr=log)

    def _signal(self, name: str, process: str) -> None:
        subprocess.run([*ROOT, "kill", f"-{name}", process.strip()], check=True)


@contextlib.contextmanager
def private_engine() -> Iterator[PrivateEngine]:
    """A private engine, not started yet, with all that it leaves removed at the end."""
    for program in ("dockerd", "containerd"):
        assert shutil.which(program), f"there is no {program} here to start an engine beside the one in use; install it"
    # Not below pytest's folder: the path of a socket has 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="sandkeep-dockerd-"))
    bridged = _BRIDGE.exists()
    made = PrivateEngine(folder)
    try:
        yield made
        assert _BRIDGE.exists() == bridged, "the private engine has changed the network of the one in use"
    finally:
        made.stop()
        # An engine that was killed leaves its data mounted on itself.
        subprocess.run([*ROOT, "umount", f"{folder}/data"], stderr=subprocess.DEVNULL, check=False)
        subprocess.run([*ROOT, "rm", "-rf", "--one-file-system", str(folder)], check=True)


class Engine(Protocol):
    """An engine of a test's own."""

    def client(self) -> contextlib.AbstractContextManager[docker.DockerClient]: ...


def give_image(to: Engine, recipe: Recipe) -> None:
    """Copy the image of a recipe from the engine in use, which makes it if it has to."""
    with contextlib.closing(docker.DockerClient.from_env()) as source, to.client() as target:
        name = ensure(source, recipe, lambda message: None).tag
        target.images.load(b"".join(source.images.get(name).save(named=True)))
