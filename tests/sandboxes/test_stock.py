"""What images take on disk together, and which have to go: no engine is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandkeep.sandboxes import stock
from sandkeep.sandboxes.errors import KeepFormat
from sandkeep.sandboxes.stock import Image

_DAY_NS = 86_400 * 10**9


def an_image(name: str, size: int, layers: str, *, used: int | None = None, made: int | None = 1) -> Image:
    """An image whose layers are letters."""
    return Image(
        name=name,
        version=name,
        tag=f"sandkeep/{name}:0123456789ab",
        id=f"id of {name}",
        size=size,
        source="",
        current=True,
        stale=False,
        made_ns=made,
        used_ns=used,
        uses=0,
        layers=tuple(layers),
    )


BASE, WEB, APP = an_image("base", 100, "a"), an_image("web", 130, "ab"), an_image("app", 150, "abc")
OTHER = an_image("other", 50, "x")


def chosen(images: list[Image], budget: int, *needed: Image) -> list[str]:
    return [each.name for each in stock.choose(images, budget, lambda each: each in needed)]


def test_what_is_shared_is_counted_once() -> None:
    assert stock.disk([]) == 0
    assert stock.disk([BASE, OTHER]) == 150
    assert stock.disk([WEB, BASE]) == 130
    assert stock.disk([BASE, WEB, APP, OTHER]) == 200
    assert stock.disk([APP, an_image("same", 150, "abc")]) == 150
    assert stock.disk([APP, APP]) == 150


def test_the_least_used_goes_first_and_no_more_than_has_to() -> None:
    old, new, never = (
        an_image("old", 10, "p", used=5),
        an_image("new", 10, "q", used=9),
        an_image("never", 10, "r", made=7),
    )
    images = [new, never, old]
    assert chosen(images, 30) == []
    assert chosen(images, 29) == ["old"]
    assert chosen(images, 19) == ["old", "never"]
    assert chosen(images, 0) == ["old", "never", "new"]
    assert chosen(images, 0, old) == ["never", "new"]
    assert chosen(images, 0, *images) == []


def test_what_frees_nothing_stays_until_it_does() -> None:
    assert chosen([BASE, WEB], 120) == ["web"]
    assert chosen([BASE, WEB], 50) == ["web", "base"]
    assert chosen([BASE, WEB], 50, WEB) == []
    twice = [an_image("one", 10, "z", used=1), an_image("two", 10, "z", used=2)]
    assert chosen([*twice, OTHER], 55) == ["other"]


@pytest.mark.parametrize(("text", "days"), [("", 30), ("[images]\n", 30), ("[images]\nmax_age_days = 0.5\n", 0.5)])
def test_how_old_an_image_may_be_is_a_setting(tmp_path: Path, text: str, days: float) -> None:
    (tmp_path / "keep.toml").write_text(f'format = 1\nid = "x"\n{text}')
    assert stock.max_age_ns(tmp_path) == days * _DAY_NS


@pytest.mark.parametrize(
    "text",
    [
        "[images",
        "images = 3\n",
        "[images]\nmax_age = 3\n",
        "[images]\nmax_age_days = '3'\n",
        "[images]\nmax_age_days = -1\n",
        "[images]\nmax_age_days = nan\n",
        "[images]\nmax_age_days = inf\n",
    ],
)
def test_a_setting_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keep.toml").write_text(text)
    with pytest.raises(KeepFormat, match=r"keep\.toml"):
        stock.max_age_ns(tmp_path)


def test_a_new_file_is_new_or_not_there(tmp_path: Path) -> None:
    with stock.new_file(tmp_path / "a") as file:
        file.write(b"x")
    with pytest.raises(Exception, match="name a file that does not exist yet"), stock.new_file(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_bytes() == b"x"
    with pytest.raises(KeyError), stock.new_file(tmp_path / "b") as file:
        raise KeyError
    assert not (tmp_path / "b").exists()
