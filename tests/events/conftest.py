from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep.events import BlobStore, LmdbLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where `log` lies."""
    return tmp_path / "log"


@pytest.fixture
def log(path: Path) -> Iterator[LmdbLog[None]]:
    with contextlib.closing(LmdbLog[None](path)) as log:
        yield log


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where `store` lies."""
    return tmp_path / "blobs"


@pytest.fixture
def store(root: Path) -> BlobStore:
    return BlobStore(root)
