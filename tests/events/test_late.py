"""What is loaded or made when it is first used."""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sandkeep import events, projections, sandboxes
from sandkeep.events import late


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a module `part`, which counts how often it was loaded, and takes a while."""
    folder = tmp_path / "lately"
    folder.mkdir()
    (folder / "__init__.py").write_text("import threading\nBEGUN = threading.Event()\n")
    text = "import time\nfrom lately import BEGUN\nLOADED = []\nBEGUN.set()\ntime.sleep(0.1)\nLOADED.append(1)\n"
    (folder / "part.py").write_text(text + "def twice(number, *, more=0):\n    return 2 * number + more\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lately", raising=False)
    monkeypatch.delitem(sys.modules, "lately.part", raising=False)
    return "lately"


def test_it_is_loaded_by_its_first_use_and_once_for_all_threads(package: str) -> None:
    names = late.bound(package, "part part:twice")
    assert "lately.part" not in sys.modules

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(names["twice"], 0, more=1)
        begun = importlib.import_module(package).BEGUN
        assert begun.wait(30)  # it is half loaded now
        others = [pool.submit(names["twice"], number, more=1) for number in (1, 2, 3)]
        assert [each.result() for each in (first, *others)] == [1, 3, 5, 7]
    assert names["part"].LOADED == [1]


def test_what_is_replaced_in_a_module_is_replaced_for_who_uses_it(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = late.bound(package, "part:twice")["twice"]
    assert twice(2) == 4
    monkeypatch.setattr("lately.part.twice", lambda number: "other")
    assert twice(2) == "other"


def test_what_loading_raises_is_raised_by_the_use(package: str) -> None:
    names = late.bound(package, "missing part:absent")
    with pytest.raises(ModuleNotFoundError, match=r"lately\.missing"):
        names["missing"].anything()
    with pytest.raises(AttributeError, match="absent"):
        names["absent"]()


@pytest.mark.parametrize("room", [events, projections, sandboxes], ids=lambda room: room.__name__)
def test_a_package_offers_what_it_lists(room: Any) -> None:
    assert set(room.__all__) <= set(dir(room))
    for name in room.__all__:
        assert getattr(room, name).__name__ == name
    with pytest.raises(AttributeError, match=rf"'{room.__name__}' has no attribute 'nothing'"):
        room.nothing()


def test_what_is_made_once_is_made_once_for_all_threads() -> None:
    made, start = [], threading.Barrier(8)

    class Owner:
        @late.once
        def part(self) -> object:
            """A part."""
            made.append(threading.get_ident())
            threading.Event().wait(0.01)
            return object()

    owner, other = Owner(), Owner()

    def use(number: int) -> object:
        start.wait()
        return owner.part

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(use, range(8))) == {owner.part}
    assert len(made) == 1
    assert other.part is not owner.part
    assert inspect.getdoc(Owner.part) == "A part.", "a class that is asked for it makes nothing"
