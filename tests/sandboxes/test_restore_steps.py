"""A restore that dies at any of its steps, without a chance to clean up, is completed by the next."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandkeep.events import BlobStore
from sandkeep.sandboxes import restore, snapshot

from ..crash.support import LONG
from .support import opened, put_back, take
from .trees import whole

_STEPS = (
    *("mkdir", "rmdir", "rename", "link", "unlink", "symlink", "mknod", "write", "pwrite", "ftruncate", "utime"),
    *("chmod", "fchmod", "chown", "fchown", "setxattr", "removexattr"),
)


APART = 1 if LONG else 5
"""How many steps lie between those at which it dies."""


class Died(BaseException):
    """The process is no more."""


class Life:
    """Lets the process die before a step; from then on nothing is done any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
        self.left = steps
        for name in _STEPS:
            monkeypatch.setattr(os, name, self._step(getattr(os, name)))

    def _step(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: object, **options: object) -> object:
            self.left -= 1
            if self.left < 0:
                raise Died
            return real(*arguments, **options)

        return step


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tree with a little of everything."""
    root = tmp_path / "tree"
    (root / "sub" / "inner").mkdir(parents=True)
    (root / "gone" / "deep").mkdir(parents=True)
    for name in ("file", "mode", "sub/other", "gone/one", "gone/deep/two", "kind"):
        (root / name).write_text(name)
    (root / "again").hardlink_to(root / "file")
    (root / "sub" / "third").hardlink_to(root / "file")
    (root / "link").symlink_to("file")
    os.mkfifo(root / "fifo")
    os.setxattr(root / "mode", "user.told", b"before")
    with open(root / "sparse", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"data")
    return root


def test_what_dies_at_any_step_is_completed_by_another(
    folder: Path, tmp_path: Path, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, target = whole(folder), take(folder, blobs).digest
    (folder / "file").unlink()
    (folder / "file").write_text("changed")
    (folder / "mode").chmod(0o600)
    os.setxattr(folder / "mode", "user.told", b"after")
    shutil.rmtree(folder / "gone")
    (folder / "kind").unlink()
    (folder / "kind" / "is" / "other").mkdir(parents=True)
    (folder / "kind" / "is" / "file").touch()
    (folder / "sub" / "new").hardlink_to(folder / "again")
    for name in ("fifo", "link", "sparse"):
        (folder / name).unlink()
    changed, present = whole(folder), take(folder, blobs).digest
    untouched = 0
    for steps in range(0, 1000, APART):
        with opened(folder) as root, monkeypatch.context() as patch:
            was = snapshot.take(root, blobs).digest
            life = Life(patch, steps)
            with contextlib.suppress(Died):
                restore.apply(root, was, target, blobs)
            if life.left >= 0:
                break
        untouched += whole(folder) == changed
        assert put_back(folder, target, blobs) == ()
        assert whole(folder) == expected
        assert not (tmp_path / restore.STAGE).exists()
        assert put_back(folder, present, blobs) == ()
        assert whole(folder) == changed
    assert whole(folder) == expected
    # All that is new is made before anything is touched.
    assert untouched * APART > 30
    assert steps > untouched * APART + 20
