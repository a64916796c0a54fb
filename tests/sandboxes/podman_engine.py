"""A podman of a test's own, behind the same API as Docker: with storage, state and network namespace of its own."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker

from sandkeep.sandboxes.recipe import base_recipe, busybox_recipe

from .private_engine import ROOT, SECONDS, give_image


class PodmanEngine:
    """podman's service. It shares nothing with the engine in use, nor with a podman of the user's."""

    def __init__(self, folder: Path) -> None:
        self.host = f"unix://{folder}/sock"
        self._folder = folder
        self._log = folder / "log"
        command = [
            *(*ROOT, "unshare", "--net", "podman", f"--root={folder}/root", f"--runroot={folder}/run"),
            *(f"--tmpdir={folder}/tmp", "--storage-driver=overlay", "--cgroup-manager=cgroupfs"),
            # What docker.io brings; crun refuses hosts that have control groups of both versions.
            *("--runtime=runc", "--events-backend=file", "--log-level=error"),
            *("system", "service", "--time=0", self.host),
        ]
        with self._log.open("wb") as log:
            # It leaves a file where it was started when a container runs out of memory.
            self._service = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(docker.errors.DockerException), self.client() as client:
                client.ping()
                return
            assert self._service.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < deadline, "podman does not answer"
            time.sleep(0.05)

    @contextlib.contextmanager
    def client(self) -> Iterator[docker.DockerClient]:
        """A client of it."""
        with contextlib.closing(docker.DockerClient(base_url=self.host)) as client:
            yield client

    def stop(self) -> list[str]:
        """End it with all its containers, and return those there were."""
        with self.client() as client:
            left = client.api.containers(all=True)
            for each in left:
                client.api.remove_container(each["Id"], force=True)
        self._service.send_signal(signal.SIGTERM)
        self._service.wait(SECONDS)
        # What watched an exec stays for five minutes, and would then make the folder anew.
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if process.name.isdigit() and f"{self._folder}/" in (process / "cmdline").read_text():
                    subprocess.run([*ROOT, "kill", "-KILL", process.name], stderr=subprocess.DEVNULL, check=False)
        return [str(each["Names"]) for each in left]


@contextlib.contextmanager
def podman_engine() -> Iterator[PodmanEngine]:
    """A podman that has the images of the suite, with all that it leaves removed at the end."""
    assert shutil.which("podman"), (
        "there is no podman here to hold to the same as Docker; install it, or run make setup"
    )
    # Not below pytest's folder: the path of a socket has 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="sandkeep-podman-"))
    made = PodmanEngine(folder)
    try:
        made.wait()
        for recipe in (base_recipe(), busybox_recipe()):
            give_image(made, recipe)
        yield made
    finally:
        left = made.stop()
        subprocess.run([*ROOT, "umount", f"{folder}/root/overlay"], stderr=subprocess.DEVNULL, check=False)
        subprocess.run([*ROOT, "rm", "-rf", "--one-file-system", str(folder)], check=True)
    assert left == []
