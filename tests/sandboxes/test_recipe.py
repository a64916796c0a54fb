"""What decides what an image is, and what images, packages and versions are called."""

from __future__ import annotations

import platform
from typing import Any

import msgspec
import pytest

from sandkeep.events import BadInput
from sandkeep.sandboxes.recipe import (
    RECIPES,
    File,
    Recipe,
    base_recipe,
    check_name,
    check_packages,
    parse_tag,
    tag_of,
    with_packages,
)

FIXED = Recipe(distribution="debian", codename="bookworm", arch="amd64", registry_image="debian:bookworm-slim")


def test_an_unchanged_recipe_keeps_its_digest() -> None:
    assert msgspec.json.decode(msgspec.json.encode(FIXED), type=Recipe).digest == FIXED.digest


@pytest.mark.parametrize("field", Recipe.__struct_fields__)
def test_every_field_of_a_recipe_changes_its_digest(field: str) -> None:
    value = getattr(FIXED, field)
    other = 2 + value if isinstance(value, int) else (*value, "x") if isinstance(value, tuple) else value + "x"
    assert msgspec.structs.replace(FIXED, **{field: other}).digest != FIXED.digest


@pytest.mark.parametrize("change", [{"path": "/x"}, {"content": b"y"}, {"mode": 0o644}, {"target": "x"}], ids=str)
def test_so_does_every_field_of_its_files(change: dict[str, Any]) -> None:
    file = File("/etc/x", b"x", 0o600, "y")
    both = (file, msgspec.structs.replace(file, **change))
    assert len({msgspec.structs.replace(FIXED, files=(each,)).digest for each in both}) == 2


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ({"ID": "debian", "VERSION_CODENAME": "bookworm"}, "debian:bookworm-slim"),
        ({"ID": "ubuntu", "VERSION_CODENAME": "noble"}, "ubuntu:noble"),
        ({"ID": "debian"}, "debian:trixie-slim"),
        ({"ID": "fedora", "VERSION_CODENAME": ""}, "debian:trixie-slim"),
    ],
)
def test_the_base_follows_the_host(monkeypatch: pytest.MonkeyPatch, release: dict[str, str], expected: str) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    recipe = base_recipe()
    assert (recipe.registry_image, recipe.arch) == (expected, "arm64")


def test_a_host_without_os_release_gets_debian(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> dict[str, str]:
        raise FileNotFoundError

    monkeypatch.setattr(platform, "freedesktop_os_release", missing)
    assert base_recipe().distribution == "debian"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_found_by_its_own_name_and_is_not_another_s(name: str) -> None:
    assert check_name(RECIPES[name]().name) == name
    assert len({make().digest for make in RECIPES.values()}) == len(RECIPES)


def test_more_packages_are_named_once_and_in_order() -> None:
    recipe = with_packages("web", ["zip", "git", "curl"])
    assert recipe == msgspec.structs.replace(base_recipe(), name="web", packages=("curl", "git", "python3", "zip"))
    assert recipe.digest == with_packages("web", ["curl", "zip", "zip"]).digest


@pytest.mark.parametrize("name", ["", "A", "a/b", "a:b", "-a", "a-", "a--b", "a b", "\x1b", "a" * 65, "a\n"])
def test_what_an_engine_would_take_for_something_else_is_no_name(name: str) -> None:
    with pytest.raises(BadInput, match="is no image's name"):
        check_name(name)


@pytest.mark.parametrize("package", ["", "-y", "a;b", "a=1", "a b", "A", "$(id)", "a/b", "x" * 65, "ab\n"])
def test_what_apt_or_a_shell_would_take_for_something_else_is_no_package(package: str) -> None:
    with pytest.raises(BadInput, match="is no name of a Debian package"):
        check_packages([package])


def test_too_many_packages_are_refused() -> None:
    assert len(check_packages([f"p{number}" for number in range(500)])) == 500
    with pytest.raises(BadInput, match="501 packages are too many"):
        check_packages([f"p{number}" for number in range(501)])


def test_a_version_is_the_beginning_of_an_id() -> None:
    tag = tag_of("web", f"sha256:0123456789ab{'c' * 52}")
    assert tag == "sandkeep/web:0123456789ab"
    assert parse_tag(tag) == ("web", "0123456789ab")


@pytest.mark.parametrize(
    "tag",
    [
        "sandkeep/web:latest",
        "sandkeep/web",
        "sandkeep/web:0123456789abc",
        "sandkeep/web:0123456789AB",
        "other/web:0123456789ab",
        "sandkeep/a/b:0123456789ab",
        "x/sandkeep/web:0123456789ab",
        "docker.io/sandkeep/web:0123456789ab",
        f"sandkeep/{'a' * 65}:0123456789ab",
        "sandkeep/web:0123456789ab\n",
    ],
)
def test_nothing_else_is_called_like_ours(tag: str) -> None:
    assert parse_tag(tag) is None
