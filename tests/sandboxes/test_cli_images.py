"""The command line's verbs for images."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandkeep.sandboxes import Keep, show_images
from sandkeep.sandboxes.text import moment

from .support import Cli

pytestmark = pytest.mark.engine


@pytest.fixture
def web(cli: Cli, tmp_path: Path, image_name: str) -> str:
    """The name of an image that was built by the command line, in a new keep."""
    Keep.init(cli.keep).close()
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY x /x\n")
    (folder / "x").write_text("x" * 1000)
    answer = cli("build-image", image_name, "--dockerfile", str(folder), "--no-network", "--json")
    assert answer.status == 0, answer.stderr
    assert answer.json["name"] == image_name
    return image_name


def test_images_are_shown(web: str, cli: Cli) -> None:
    document = cli("images", "--json").json
    [entry] = [each for each in document["images"] if each["name"] == web]
    assert entry == {
        "name": web,
        "version": entry["id"][7:19],
        "tag": f"sandkeep/{web}:{entry['version']}",
        "id": entry["id"],
        "size": 1000,
        "source": "dockerfile",
        "current": True,
        "stale": False,
        "uses": 0,
        "made": entry["made"],
        "used": None,
    }
    assert document["names"] == [
        {"name": web, "uses": 0, "misses": 0, "builds": 1, "failures": 0, "removed": 0, "hit_rate": None}
    ]
    lines = cli("images").stdout.decode().splitlines()
    assert lines[0].split() == ["IMAGE", "VERSION", "ID", "SIZE", "AGE", "LAST", "USED", "TASKS"]
    assert [line.split()[:4] for line in lines if line.startswith(web)] == [
        [web, "*", entry["version"], entry["version"]],
        [web, "0", "1", "0"],
    ]


def test_an_image_is_exported_pruned_and_imported(web: str, cli: Cli, tmp_path: Path) -> None:
    file = str(tmp_path / "web.tar")
    written = cli("export-image", web, file, "--json").json
    assert (written["file"], Path(file).stat().st_size > 1000) == (file, True)
    cli("export-image", web, file).refused("bad-input", 2)
    dry = cli("prune-images", "--budget", "0", "--dry-run")
    assert dry.stdout.decode().splitlines() == [
        f"would remove {written['tag']}",
        "0B of images would be left of 1000B",
    ]
    done = cli("prune-images", "--budget", "0.5KiB", "--json").json
    assert [each["tag"] for each in done.pop("removed")] == [written["tag"]]
    assert done == {"before": 1000, "after": 0, "budget": 512, "dry_run": False}
    cli("export-image", web, str(tmp_path / "other.tar")).refused("image-not-found", 2)
    cli("import-image", file, "--id", "sha256:0").refused("bad-image", 2)
    answer = cli("import-image", file, "--id", written["id"])
    assert answer.stdout.decode() == f"{written['tag']}  1000B\n"
    [entry] = [each for each in cli("images", "--json").json["images"] if each["name"] == web]
    assert (entry["id"], entry["source"]) == (written["id"], "archive")


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        (["build-image", "nothing"], "bad-input", 2),
        (["build-image", "base", "--from", "debian"], "bad-input", 2),
        (["build-image", "x", "--dockerfile", "/nonexistent"], "bad-image", 2),
        (["build-image", "x", "--from", "docker.io/sandkeep/x"], "image-not-found", 2),
        (["prune-images", "--budget", "many"], "bad-input", 2),
        (["prune-images", "--budget", "-1"], "bad-input", 2),
        (["import-image", "/dev/null"], "bad-image", 2),
        (["import-image", "/nonexistent"], "bad-image", 2),
        (["import-image", "/"], "bad-image", 2),
        (["export-image", "\x1b[31m", "x"], "image-not-found", 2),
    ],
)
def test_what_cannot_be_done_is_one_line(keep: Keep, cli: Cli, arguments: list[str], code: str, status: int) -> None:
    keep.close()
    line = cli(*arguments).refused(code, status)
    assert "\x1b" not in line
    assert cli(*arguments, "--json").json["error"]["code"] == code


@pytest.mark.parametrize(
    ("seconds", "age"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (86400 * 45, "45 d"), (-5, "0 s")]
)
def test_ages_are_told_in_one_unit(monkeypatch: pytest.MonkeyPatch, seconds: int, age: str) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert show_images.age(moment(10**18 - seconds * 10**9)) == age
    assert show_images.age(None) == ""
