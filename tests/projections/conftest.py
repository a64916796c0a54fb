from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .support import Keep
from .support import keep as opened


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    with opened(tmp_path) as keep:
        yield keep
