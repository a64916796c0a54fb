"""Every test of this folder that asks for a `subject` runs once for each backend that has what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .backends import BACKENDS
from .subject import Subject, fits


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        names = [name for name, backend in BACKENDS.items() if fits(metafunc.function, backend)]
        metafunc.parametrize("backend", names)


@pytest.fixture
def subject(backend: str, tmp_path: Path) -> Iterator[Subject]:
    made = Subject(BACKENDS[backend], tmp_path / "keep")
    made.folder.mkdir()
    yield made
    made.close()
