"""Which of the host's apt sources an image is made from. That it can be made of them is seen in `test_image`."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from sandkeep.sandboxes import packages
from sandkeep.sandboxes.errors import ImageBuildFailed

from .test_recipe import FIXED


def test_only_the_recipe_s_release_and_origin_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "debian.sources"
    sources.write_text(
        "# the first\n\nTypes: deb\nURIs: http://a.invalid\nSigned-By: /keys/a.gpg\n\n"
        "Types: deb\n# inside\nURIs: http://b.invalid\nsigned-by:\n KEY\n .\n END\nComponents: main\n"
    )

    def listed(*command: str) -> list[str]:
        a, b = f"{sources}:1", f"{sources}:2"
        return [
            f"http://a.invalid/\tstable\tmain\tbookworm\tDebian\tamd64\t{a}",
            f"http://a.invalid/\tstable\tmain\tbookworm\tDebian\tamd64\t{a}",
            f"http://b.invalid/\tstable-security\tmain\tbookworm-security\tDebian\tamd64\t{b}",
            f"http://a.invalid/\tbookworm-backports\tmain\tbookworm-backports\tDebian\tamd64\t{a}",
            f"http://a.invalid/\ttrixie\tmain\ttrixie\tDebian\tamd64\t{a}",
            f"http://a.invalid/\tstable\tmain\tbookworm\tDebian\ti386\t{a}",
            f"http://c.invalid/\tstable\tmain\tbookworm\tSomebody\tamd64\t{a}",
        ]

    monkeypatch.setattr(packages, "_apt", listed)
    assert packages._apt_sources(FIXED) == (
        "Types: deb\nURIs: http://a.invalid/\nSuites: stable\nComponents: main\nSigned-By: /keys/a.gpg\n\n"
        "Types: deb\nURIs: http://b.invalid/\nSuites: stable-security\nComponents: main\n"
        "signed-by:\n KEY\n .\n END\n"
    )


def test_the_pockets_of_ubuntu_share_a_codename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = f"{tmp_path / 'sources.list'}:2"
    (tmp_path / "sources.list").write_text(
        "# none\ndeb [arch=amd64 signed-by=/k/a.gpg,/k/b.gpg] http://a.invalid noble main\n"
    )
    suites = ("noble", "noble-updates", "noble-backports", "noble-proposed")
    lines = [f"http://a.invalid/\t{suite}\tmain\tnoble\tUbuntu\tamd64\t{entry}" for suite in suites]
    monkeypatch.setattr(packages, "_apt", lambda *command: lines)
    found = packages._apt_sources(msgspec.structs.replace(FIXED, distribution="ubuntu", codename="noble"))
    assert [line for line in found.splitlines() if line.startswith("Suites")] == [
        "Suites: noble",
        "Suites: noble-updates",
    ]
    assert found.count("Signed-By: /k/a.gpg /k/b.gpg\n") == 2


@pytest.mark.parametrize(("name", "text"), [("a.list", "deb http://a.invalid b main\n"), ("a.sources", "Types: deb\n")])
def test_a_source_may_name_no_key(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert packages._signed_by(f"{tmp_path / name}:1") == ""


def test_without_a_list_of_the_release_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_apt", lambda *command: [])
    with pytest.raises(ImageBuildFailed, match=r"no list of Debian bookworm for amd64; run apt-get update"):
        packages._apt_sources(FIXED)


def test_a_failing_apt_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(ImageBuildFailed, match=r"^sh: broken; repair apt"):
        packages._apt("sh", "-c", "echo first >&2; echo broken >&2; exit 100")


def test_a_host_without_apt_is_told_so() -> None:
    with pytest.raises(ImageBuildFailed, match=r"^no-such-apt: .*No such file"):
        packages._apt("no-such-apt")
