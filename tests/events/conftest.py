from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep.events import LmdbLog, Record

from .support import Replica


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where `log` and `deciding` lie."""
    return tmp_path / "log"


@pytest.fixture
def log(path: Path) -> Iterator[LmdbLog[None]]:
    with contextlib.closing(LmdbLog[None](path)) as log:
        yield log


@pytest.fixture
def replica() -> Replica:
    return Replica()


@pytest.fixture
def deciding(path: Path, replica: Replica) -> Iterator[LmdbLog[list[Record]]]:
    """A log whose deciders see the list of all records."""
    with contextlib.closing(LmdbLog(path, follower=replica)) as log:
        yield log
