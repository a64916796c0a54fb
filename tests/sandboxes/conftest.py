from __future__ import annotations

import base64
import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from sandkeep.events import BlobStore
from sandkeep.sandboxes import image, render
from sandkeep.sandboxes.dockerfile import NAME
from sandkeep.sandboxes.recipe import base_recipe

from .registries import quiet, run
from .support import Cli, engine


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    """A store in `tmp_path / "blobs"`."""
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def unprivileged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder, in which the test acts as a user whom permissions apply to, whoever runs it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        root = os.getuid() == 0
        if root:
            monkeypatch.setattr(os, "getuid", lambda: 1000)
            os.setegid(1000)
            os.seteuid(1000)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
                os.setegid(0)
            subprocess.run(["chmod", "-R", "u+rwX", folder], check=True)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    """The command line, on the folder that the fixture `keep` makes a keep of when a test asks for that too."""
    # On a busy machine anything may take the second after which progress is told; who tests that sets its own patience.
    monkeypatch.setattr(render, "_PATIENCE_SECONDS", 3600.0)
    return Cli(tmp_path / "keep", monkeypatch, capfdbinary)


@pytest.fixture
def image_name() -> Iterator[str]:
    """A name for an image that nobody else has. Whatever is called so is removed afterwards."""
    name = f"test-{secrets.token_hex(4)}"
    yield name
    with engine() as client:
        named = [tag for each in client.api.images(name=f"sandkeep/{name}") for tag in each["RepoTags"]]
        for tag in named:
            if tag.startswith(f"sandkeep/{name}:"):
                client.api.remove_image(tag)
        for each in client.api.images(filters={"label": f"{NAME}={name}"}):  # what a failed build had come to
            client.api.remove_image(each["Id"])


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    """A client of the engine, past the library."""
    with engine() as found:
        yield found


@pytest.fixture
def tiny_layer(client: docker.DockerClient) -> bytes:
    """A shell and `rm`, with the libraries they need."""
    script = "tar -ch $(ldd /bin/sh /bin/rm | grep -o '/[^ :)]*' | sort -u) 2>/dev/null | base64"
    # As text, because the engine's log of a container's output is JSON and changes other bytes.
    output = run(client, image.ensure(client, base_recipe(), quiet).tag, "sh", "-c", script)
    return base64.b64decode(output)
