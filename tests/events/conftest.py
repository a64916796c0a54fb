from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep.events import LmdbLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where `log` lies."""
    return tmp_path / "log"


@pytest.fixture
def log(path: Path) -> Iterator[LmdbLog[None]]:
    with contextlib.closing(LmdbLog[None](path)) as log:
        yield log
