from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep.events import BlobStore
from sandkeep.sandboxes import render

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
        for each in client.api.images(name=f"sandkeep/{name}"):
            for tag in each["RepoTags"]:
                client.api.remove_image(tag, force=True)
