"""Images on a real engine, from a registry, from packages, and neither."""

from __future__ import annotations

import os
import shutil
import socket
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker
import docker.errors
import msgspec
import pytest

from sandkeep.sandboxes import docker_archive, image
from sandkeep.sandboxes.errors import ImageBuildFailed, ImageNotFound, ImageToolMissing
from sandkeep.sandboxes.image import Made, ensure, find, unmeasured
from sandkeep.sandboxes.recipe import RECIPE, File, base_recipe, busybox_recipe

from .registries import needs_mmdebstrap, quiet, registry, removed_afterwards, run


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# ---- what it refuses


def test_main_names_an_engine_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert image.main() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("image: the Docker engine does not answer: ")
    assert err.count("\n") == 1


def test_the_lock_is_not_taken_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / f"sandkeep-image-{os.getuid()}.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ImageBuildFailed, match="cannot be opened"), image.build_lock(quiet):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.engine
def test_a_missing_tool_is_told_from_a_failed_build(
    client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = msgspec.structs.replace(base_recipe(), registry_image=f"127.0.0.1:{unused_port()}/none:1", packages=("x",))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ImageToolMissing, match="apt-get install mmdebstrap"):
        ensure(client, recipe, quiet)
    monkeypatch.setattr(image, "base_recipe", lambda: recipe)
    assert image.main() == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith("image: no registry image")


@pytest.mark.engine
def test_an_engine_of_another_architecture_is_refused(client: docker.DockerClient) -> None:
    with pytest.raises(ImageBuildFailed, match="is for m68k, not for this engine's"):
        ensure(client, msgspec.structs.replace(base_recipe(), arch="m68k"), quiet)


# ---- on a real engine


@pytest.mark.engine
def test_the_base_that_is_there_is_left_as_it_is(
    client: docker.DockerClient, capsys: pytest.CaptureFixture[str]
) -> None:
    before = ensure(client, base_recipe(), quiet)
    said: list[str] = []
    assert (ensure(client, base_recipe(), said.append), said) == (before, [])
    assert image.main() == 0
    assert capsys.readouterr().out == f"{before.tag}\n"


@pytest.mark.engine
def test_the_base_serves_any_uid_on_a_read_only_root(client: docker.DockerClient) -> None:
    script = """
    set -e
    mkdir repository && cd repository && git init --quiet .
    printf 'import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(1, 1)\n' >test_it.py
    git add . && git -c user.name=a -c user.email=a@localhost commit --quiet -m first && git status --short
    python3 -m unittest 2>&1 | tail -n 1
    git log --format=%s; id -u; echo "$LANG"; touch /usr/x 2>&1 | grep -o 'Read-only'
    ls /etc/apt/sources.list.d /var/lib/apt/lists /var/cache/apt /var/log 2>/dev/null | grep -v -e : -e lock -e partial
    dpkg-query --show --showformat='${Status}' git
    """
    options = {"read_only": True, "cap_drop": ["ALL"], "tmpfs": {"/tmp": "mode=1777"}, "working_dir": "/tmp"}
    output = run(client, ensure(client, base_recipe(), quiet).tag, "sh", "-c", script, user="12345:12345", **options)
    lines = [line for line in output.splitlines() if line]
    assert lines == ["OK", "first", "12345", "C.UTF-8", "Read-only", "install ok installed"]


@pytest.mark.engine
@needs_mmdebstrap
def test_builds_at_once_make_one_image_and_always_the_same(client: docker.DockerClient, image_name: str) -> None:
    recipe = msgspec.structs.replace(busybox_recipe(), name=image_name)
    said: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        builds = [pool.submit(ensure, client, recipe, said.append) for _ in range(2)]
        made, again = (build.result() for build in builds)
    assert (made.tag, made.id) == (again.tag, again.id) == (f"sandkeep/{image_name}:{made.id[7:19]}", made.id)
    assert len([line for line in said if "from this host's apt sources" in line]) == 1
    assert "waiting for another build of the image" in said
    assert run(client, made.tag, "sh", "-c", "echo hello | tail -n 1") == "hello\n"
    assert 1_500_000 < made.size < 3_000_000
    client.images.remove(made.tag)
    assert find(client, recipe) is None
    remade = image.make(client, recipe, quiet)
    assert (remade.id, remade.tag, remade.origin, remade.reused) == (made.id, made.tag, "packages", False)
    assert image.make(client, recipe, quiet).reused


@pytest.mark.engine
def test_of_several_versions_of_a_recipe_the_one_named_last_counts(
    client: docker.DockerClient, image_name: str, tmp_path: Path
) -> None:
    recipe = msgspec.structs.replace(base_recipe(), name=image_name)
    made: list[Made] = []
    for content in (b"one", b"two"):
        layer = tmp_path / f"{content.decode()}.tar"
        docker_archive.write_files([File("/version", content)], layer, 1)
        contents = docker_archive.compose(recipe, [layer])
        assert find(client, recipe) == (made[-1] if made else None)
        assert image.load(client, contents, quiet, unmeasured) == (contents.id, False)
        made.append(msgspec.structs.replace(image.publish(client, image_name, contents.id, "packages"), origin=""))
        assert find(client, recipe) == made[-1]
    image.publish(client, image_name, made[0].id, "packages")
    assert find(client, recipe) == made[0]
    assert find(client, msgspec.structs.replace(recipe, version=99)) is None
    assert find(client, msgspec.structs.replace(recipe, name="other")) is None


@pytest.mark.engine
@needs_mmdebstrap
def test_nothing_of_the_host_is_in_an_image(client: docker.DockerClient, image_name: str) -> None:
    made = ensure(client, msgspec.structs.replace(busybox_recipe(), name=image_name), quiet)
    # Of its layers, since in a container the engine puts its own over them.
    with tempfile.NamedTemporaryFile() as file:
        file.writelines(client.api.get_image(made.tag))
        file.flush()
        packages, files = docker_archive.read(Path(file.name), unmeasured).layers
        file.seek(packages.offset)
        with tarfile.open(fileobj=file, mode="r|") as tar:
            names = {member.name.removeprefix("./") for member in tar}
    assert {"bin/busybox", "etc"} <= names
    assert names.isdisjoint({"etc/hostname", "etc/resolv.conf", "etc/apt/sources.list"})
    assert files.size < 100_000


@pytest.mark.engine
@needs_mmdebstrap
def test_a_package_that_does_not_exist_is_named(client: docker.DockerClient, image_name: str) -> None:
    recipe = msgspec.structs.replace(
        busybox_recipe(),
        name=image_name,
        registry_image=f"127.0.0.1:{unused_port()}/none:1",
        packages=("sandkeep-has-no-such-package",),
    )
    with pytest.raises(ImageBuildFailed, match=r"mmdebstrap: .+; see whether apt-get update works"):
        ensure(client, recipe, quiet)
    assert not client.api.images(name=f"sandkeep/{image_name}")


@pytest.mark.engine
def test_a_registry_image_is_used_where_it_can_be_pulled(
    client: docker.DockerClient, tiny_layer: bytes, image_name: str
) -> None:
    with registry(tiny_layer, base_recipe().arch) as reference, removed_afterwards(client, reference):
        files = (File("/etc/greeting", b"hello\n"), File("/bin/hi", target="/etc/greeting"))
        recipe = msgspec.structs.replace(
            base_recipe(), name=image_name, registry_image=reference, packages=(), files=files
        )
        said: list[str] = []
        made = ensure(client, recipe, said.append)
        assert (made.origin, find(client, recipe)) == ("registry", Made(made.tag, made.id, made.size))
        found = client.images.get(made.tag)
        assert found.labels == {RECIPE: recipe.digest}
        assert found.attrs["Config"]["Cmd"] == ["sh"]
        assert set(recipe.environment.split()) <= set(found.attrs["Config"]["Env"])
        assert run(client, made.tag, "sh", "-c", "read line </bin/hi; echo $line") == "hello\n"
        assert [line for line in said if "apt sources" in line] == []


@pytest.mark.engine
def test_what_is_pulled_is_one_of_ours_and_measured(
    client: docker.DockerClient, tiny_layer: bytes, image_name: str
) -> None:
    seen: list[tuple[int, int]] = []
    with registry(tiny_layer, base_recipe().arch) as reference, removed_afterwards(client, reference):
        made = image.pull(client, image_name, reference, quiet, lambda done, total: seen.append((done, total)))
        assert (made.origin, made.tag) == ("registry", f"sandkeep/{image_name}:{made.id[7:19]}")
    assert seen
    assert all(0 <= done <= total for done, total in seen)


@pytest.mark.engine
@pytest.mark.parametrize("prefix", ["", "docker.io/", "index.docker.io/", "Docker.IO/"])
def test_no_registry_supplies_what_is_called_like_ours(client: docker.DockerClient, prefix: str) -> None:
    said: list[str] = []
    with pytest.raises(ImageNotFound, match="no registry may supply it"):
        image.pull(client, "web", f"{prefix}sandkeep/base:0123456789ab", said.append, unmeasured)
    assert said == []


@pytest.mark.engine
def test_a_registry_image_that_cannot_be_built_on_is_given_up(
    client: docker.DockerClient, tiny_layer: bytes, monkeypatch: pytest.MonkeyPatch, image_name: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with registry(tiny_layer, base_recipe().arch) as reference, removed_afterwards(client, reference):
        recipe = msgspec.structs.replace(base_recipe(), name=image_name, registry_image=reference)
        said: list[str] = []
        with pytest.raises(ImageToolMissing):
            ensure(client, recipe, said.append)
    assert [line for line in said if "apt sources: The command" in line], said


@pytest.mark.engine
def test_a_silent_registry_does_not_hold_up_the_build(
    client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch, image_name: str
) -> None:
    monkeypatch.setattr(image, "REGISTRY_SILENCE_S", 1)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reference = f"127.0.0.1:{silent.getsockname()[1]}/none:1"
        said: list[str] = []
        with pytest.raises(ImageToolMissing):
            ensure(
                client, msgspec.structs.replace(base_recipe(), name=image_name, registry_image=reference), said.append
            )
    assert [line for line in said if "the engine got no answer in time" in line], said


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([], ""),
        (
            [{"stream": "Step 1/2\n"}, {"aux": {"ID": "sha256:a"}}, {"aux": {"ID": "sha256:b"}}, {"stream": "done"}],
            "sha256:b",
        ),
        ([{"stream": f"Loaded image ID: sha256:{'c' * 64}\n"}, {"status": "x", "aux": None}], f"sha256:{'c' * 64}"),
        ([{"status": "Downloading", "progressDetail": {"current": 1}}], ""),
    ],
)
def test_the_engine_names_what_it_has_made(messages: list[dict[str, Any]], found: str) -> None:
    assert image.follow(messages, quiet) == found


def test_what_the_engine_calls_an_error_ends_its_work() -> None:
    with pytest.raises(image.NoImage, match=r"^it broke$"):
        image.follow([{"stream": "x"}, {"error": "first\nit broke\n"}], quiet)


@pytest.mark.engine
def test_a_layer_that_the_engine_refuses_is_an_error(client: docker.DockerClient, tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    layer.write_bytes(b"no tar" * 1000)
    contents = docker_archive.compose(base_recipe(), [layer])
    with pytest.raises(ImageBuildFailed, match=r"the engine refused the image: .+; look at its log and disk"):
        image.load(client, contents, quiet, unmeasured)
    assert not client.api.images(filters={"label": f"{RECIPE}={base_recipe().digest}", "dangling": True})


@pytest.mark.engine
def test_a_full_disk_is_not_taken_for_an_engine_that_is_away(
    client: docker.DockerClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    with pytest.raises(ImageBuildFailed, match="the image cannot be written: No such file or directory"):
        image.load(client, docker_archive.compose(base_recipe(), []), quiet, unmeasured)
