"""Builds from a Dockerfile: what of its folder is taken, and what comes of it on a real engine."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import docker
import pytest

from sandkeep.sandboxes import dockerfile, image
from sandkeep.sandboxes.errors import BadImage, ImageBuildFailed
from sandkeep.sandboxes.image import Made, unmeasured
from sandkeep.sandboxes.recipe import base_recipe, busybox_recipe

from .registries import needs_mmdebstrap, quiet, registry, removed_afterwards, run

Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """Makes a folder with a Dockerfile and other files, by their paths."""

    def write(text: str = "FROM $SANDKEEP_BASE\n", **files: str) -> Path:
        (tmp_path / "context").mkdir()
        for name, content in {"Dockerfile": text, **files}.items():
            path = tmp_path / "context" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path / "context"

    return write


def packed(folder: Path) -> tarfile.TarFile:
    out = io.BytesIO()
    dockerfile.pack(folder, out)
    out.seek(0)
    return tarfile.open(fileobj=out)


def names(folder: Path) -> list[str]:
    with packed(folder) as tar:
        return sorted(tar.getnames())


def test_what_is_ignored_is_left_out(folder: Write) -> None:
    ignored = "# no\n\n*.log\n/secret\nbig/\n!big/kept\n**/tmp\nDockerfile\n"
    made = folder(
        **{
            ".dockerignore": ignored,
            "a.log": "",
            "b": "",
            "secret": "",
            "sub/secret": "",
            "big/x": "",
            "big/kept": "",
            "sub/tmp/y": "",
        }
    )
    assert names(made) == [".dockerignore", "Dockerfile", "b", "big/kept", "sub", "sub/secret"]


def test_equal_folders_are_equal_contexts(folder: Write) -> None:
    made = folder(a="x", b="y")
    first, second = io.BytesIO(), io.BytesIO()
    dockerfile.pack(made, first)
    os.utime(made / "a", (1, 1))
    dockerfile.pack(made, second)
    assert first.getvalue() == second.getvalue()
    (made / "a").chmod(0o755)
    third = io.BytesIO()
    dockerfile.pack(made, third)
    assert third.getvalue() != first.getvalue()
    with packed(made) as tar:
        assert {(each.uid, each.gid, each.uname) for each in tar} == {(0, 0, "")}
        assert tar.getmember("a").mode == 0o755


def test_no_link_is_followed_and_nothing_that_is_no_file_is_read(folder: Write, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    made = folder()
    (made / "folder").symlink_to(tmp_path / "outside")
    (made / "file").symlink_to(tmp_path / "outside" / "secret")
    os.mkfifo(made / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(made / "socket"))
    (made / os.fsdecode(b"\xff")).write_text("not UTF-8")
    with packed(made) as tar:
        found = {each.name: each.linkname for each in tar}
    assert found.pop(os.fsdecode(b"\xff")) == ""
    assert found == {
        "Dockerfile": "",
        "folder": os.fspath(tmp_path / "outside"),
        "file": os.fspath(tmp_path / "outside" / "secret"),
    }


def test_a_file_that_becomes_a_link_meanwhile_is_not_followed(
    folder: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("secret")
    made = folder(victim="harmless")
    look = os.lstat

    def swapped(name: str, *, dir_fd: int | None = None) -> os.stat_result:
        found = look(name, dir_fd=dir_fd)
        if name == "victim":
            (made / "victim").unlink()
            (made / "victim").symlink_to(tmp_path / "secret")
        return found

    monkeypatch.setattr(os, "lstat", swapped)
    with pytest.raises(BadImage, match="'victim' cannot be read"):
        dockerfile.pack(made, io.BytesIO())


@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore"])
def test_what_says_how_to_build_is_not_read_through_a_link(folder: Write, tmp_path: Path, name: str) -> None:
    made = folder(b="")
    (tmp_path / "outside").write_text("b\n")
    (made / name).unlink(missing_ok=True)
    (made / name).symlink_to(tmp_path / "outside")
    if name == "Dockerfile":
        with pytest.raises(BadImage, match="has no Dockerfile"):
            dockerfile.pack(made, io.BytesIO())
    else:
        assert "b" in names(made)


@pytest.mark.parametrize("name", ["nowhere", "a-file"])
def test_what_is_no_folder_of_a_dockerfile_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a-file").write_text("FROM x\n")
    with pytest.raises(BadImage, match="name the folder of a Dockerfile"):
        dockerfile.pack(tmp_path / name, io.BytesIO())
    with pytest.raises(BadImage, match="has no Dockerfile"):
        dockerfile.pack(tmp_path, io.BytesIO())


def test_a_folder_without_bounds_is_refused(folder: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    made = folder(a="x" * 100, b="x" * 100)
    with monkeypatch.context() as patched:
        patched.setattr(dockerfile, "MAX_BYTES", 150)
        with pytest.raises(BadImage, match="files or 150 bytes; ignore some"):
            dockerfile.pack(made, io.BytesIO())
    with monkeypatch.context() as patched:
        patched.setattr(dockerfile, "MAX_FILES", 2)
        with pytest.raises(BadImage, match="more than 2 files"):
            dockerfile.pack(made, io.BytesIO())
    (made / ".dockerignore").write_text("a\n")
    monkeypatch.setattr(dockerfile, "MAX_BYTES", 150)
    assert names(made) == [".dockerignore", "Dockerfile", "b"]
    path = made
    for _ in range(120):
        path = path / "d"
        path.mkdir()
    with pytest.raises(BadImage, match="more than 100 folders deep"):
        dockerfile.pack(made, io.BytesIO())


def build(client: docker.DockerClient, name: str, folder: Path, *, network: bool = False) -> Made:
    def base() -> str:
        return image.ensure(client, busybox_recipe(), quiet).tag

    return dockerfile.build(client, name, folder, base, quiet, unmeasured, network=network)


@pytest.mark.engine
@needs_mmdebstrap
def test_a_dockerfile_is_built_on_our_base(client: docker.DockerClient, folder: Write, image_name: str) -> None:
    made = folder(
        "ARG SANDKEEP_BASE\nFROM $SANDKEEP_BASE\nCOPY greeting /\nRUN ls /sys/class/net >/links\n", greeting="hello\n"
    )
    seen: list[tuple[int, int]] = []
    base = image.ensure(client, busybox_recipe(), quiet).tag
    built = dockerfile.build(
        client, image_name, made, lambda: base, quiet, lambda *done: seen.append(done), network=False
    )
    assert built.tag == f"sandkeep/{image_name}:{built.id[7:19]}"
    assert built.origin == "dockerfile"
    assert run(client, built.tag, "cat", "/greeting") == "hello\n"
    assert run(client, built.tag, "cat", "/links") == "lo\n"
    assert client.images.get(built.tag).labels[dockerfile.NAME] == image_name
    assert build(client, image_name, made).id == built.id  # out of the engine's cache
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.engine
@needs_mmdebstrap
def test_a_dockerfile_that_fails_leaves_no_image_and_says_why(
    client: docker.DockerClient, folder: Write, image_name: str
) -> None:
    made = folder("ARG SANDKEEP_BASE\nFROM $SANDKEEP_BASE\nRUN echo out of order; exit 7\n")
    with pytest.raises(ImageBuildFailed, match="returned a non-zero code: 7; mend it"):
        build(client, image_name, made)
    (made / "Dockerfile").write_text("NONSENSE\n")
    with pytest.raises(ImageBuildFailed, match=r"cannot be built: .*(?i:nonsense).*; mend it"):
        build(client, image_name, made)
    assert not client.api.images(name=f"sandkeep/{image_name}")
    labels = {"label": f"{dockerfile.NAME}={image_name}"}
    assert not client.api.containers(all=True, filters=labels)


@pytest.mark.engine
def test_a_build_brings_nothing_in_that_passes_for_ours(
    client: docker.DockerClient, folder: Write, image_name: str, tiny_layer: bytes
) -> None:
    theirs = registry(tiny_layer, base_recipe().arch, f"sandkeep/{image_name}")
    with theirs as reference, removed_afterwards(client, reference):
        made = folder(f"ARG ANY={reference}\nFROM $ANY\nRUN true\n")
        with pytest.raises(ImageBuildFailed, match=rf"it pulls 'sandkeep/{image_name}:1', and no registry may supply"):
            build(client, image_name, made)
    assert not client.api.images(filters={"label": f"{dockerfile.NAME}={image_name}"})
    with registry(tiny_layer, base_recipe().arch) as reference, removed_afterwards(client, reference):
        (made / "Dockerfile").write_text(f"FROM {reference}\nRUN true\n")
        assert build(client, image_name, made).origin == "dockerfile"
