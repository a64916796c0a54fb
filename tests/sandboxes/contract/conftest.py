"""Every test of this folder runs once for each engine that is supported: they are held to the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandkeep.sandboxes import Keep, Task

from ...conftest import close
from ..podman_engine import podman_engine

DOCKER, PODMAN = "docker", "podman"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "backend" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session", params=[DOCKER, PODMAN])
def address(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Where an engine answers; None is the one in use."""
    if request.param == DOCKER:
        yield None
    else:
        with podman_engine() as made:
            yield made.host


@pytest.fixture(scope="module")
def shared_keep(address: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keep]:
    """A keep on the engine, for all tests of a module."""
    made = Keep.init(tmp_path_factory.mktemp("contract") / "keep", actor="tester")
    with pytest.MonkeyPatch.context() as patch:
        _select(patch, address)
        assert made.engine.facts.local  # it is asked now, and so it is this one
    yield made
    close(made)


@pytest.fixture(autouse=True)
def backend(address: str | None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine that the test runs against."""
    _select(monkeypatch, address)
    return DOCKER if address is None else PODMAN


@pytest.fixture
def keep(backend: str, keep: Keep) -> Keep:
    """A new keep on the engine."""
    return keep


@pytest.fixture
def small(shared_keep: Keep) -> Task:
    """A task whose image has no Python."""
    return shared_keep.create_task("small", image="busybox")


def _select(patch: pytest.MonkeyPatch, address: str | None) -> None:
    if address is not None:
        patch.setenv("DOCKER_HOST", address)
