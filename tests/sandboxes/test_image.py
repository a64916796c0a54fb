from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
import docker.errors
import msgspec
import pytest

from sandkeep.sandboxes import image
from sandkeep.sandboxes.image import ImageBuildFailed, ImageToolMissing, Recipe, base_recipe, ensure_base

needs_mmdebstrap = pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed")
FIXED = Recipe(distribution="debian", codename="bookworm", arch="amd64", registry_image="debian:bookworm-slim")


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    client = docker.DockerClient.from_env()
    yield client
    client.close()


@contextmanager
def removed_afterwards(client: docker.DockerClient, *tags: str) -> Iterator[None]:
    try:
        yield
    finally:
        for tag in tags:
            if client.api.images(name=tag):
                client.images.remove(tag, force=True)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(client: docker.DockerClient, tag: str, *command: str, **options: Any) -> str:
    """What a container prints. The SDK's own `run` follows the log, and now and then loses its last line."""
    container = client.containers.create(tag, list(command), network_mode="none", **options)
    try:
        container.start()
        assert container.wait()["StatusCode"] == 0, container.logs().decode()
        return container.logs(stderr=False).decode()
    finally:
        container.remove(force=True)


def quiet(line: str) -> None:
    """A progress callback for tests that do not look at it."""


# ---- the recipe


def test_an_unchanged_recipe_keeps_its_tag() -> None:
    again = msgspec.json.decode(msgspec.json.encode(FIXED), type=Recipe)
    assert again.tag == FIXED.tag
    assert FIXED.tag.startswith("sandkeep/base:")
    assert FIXED.tag.endswith(FIXED.digest[:12])


@pytest.mark.parametrize("field", Recipe.__struct_fields__)
def test_every_field_of_a_recipe_changes_its_tag(field: str) -> None:
    value = getattr(FIXED, field)
    other = 2 if isinstance(value, int) else (*value, "x") if isinstance(value, tuple) else value + "x"
    assert msgspec.structs.replace(FIXED, **{field: other}).tag != FIXED.tag


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


# ---- the host's apt sources


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

    monkeypatch.setattr(image, "_apt", listed)
    assert image._apt_sources(FIXED) == (
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
    monkeypatch.setattr(image, "_apt", lambda *command: lines)
    found = image._apt_sources(msgspec.structs.replace(FIXED, distribution="ubuntu", codename="noble"))
    assert [line for line in found.splitlines() if line.startswith("Suites")] == [
        "Suites: noble",
        "Suites: noble-updates",
    ]
    assert found.count("Signed-By: /k/a.gpg /k/b.gpg\n") == 2


@pytest.mark.parametrize(("name", "text"), [("a.list", "deb http://a.invalid b main\n"), ("a.sources", "Types: deb\n")])
def test_a_source_may_name_no_key(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert image._signed_by(f"{tmp_path / name}:1") == ""


def test_without_a_list_of_the_release_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_apt", lambda *command: [])
    with pytest.raises(ImageBuildFailed, match=r"no list of Debian bookworm for amd64; run apt-get update"):
        image._apt_sources(FIXED)


def test_a_failing_apt_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(ImageBuildFailed, match=r"^sh: broken; repair apt"):
        image._apt("sh", "-c", "echo first >&2; echo broken >&2; exit 100")


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
    with pytest.raises(ImageBuildFailed, match="cannot be opened"), image._build_lock(quiet):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.engine
def test_a_missing_tool_is_told_from_a_failed_build(
    client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = msgspec.structs.replace(base_recipe(), registry_image=f"127.0.0.1:{unused_port()}/none:1", packages=("x",))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ImageToolMissing, match="apt-get install mmdebstrap"):
        ensure_base(client, quiet, recipe)
    monkeypatch.setattr(image, "base_recipe", lambda: recipe)
    assert image.main() == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith("image: no registry image")


def test_a_host_without_apt_is_told_so() -> None:
    with pytest.raises(ImageBuildFailed, match=r"^no-such-apt: .*No such file"):
        image._apt("no-such-apt")


@pytest.mark.engine
def test_an_engine_of_another_architecture_is_refused(client: docker.DockerClient) -> None:
    with pytest.raises(ImageBuildFailed, match="is for m68k, not for this engine's"):
        ensure_base(client, quiet, msgspec.structs.replace(base_recipe(), arch="m68k"))


# ---- on a real engine


@pytest.mark.engine
def test_the_base_that_is_there_is_left_as_it_is(
    client: docker.DockerClient, capsys: pytest.CaptureFixture[str]
) -> None:
    tag = ensure_base(client, quiet)
    before = client.images.get(tag).id
    said: list[str] = []
    assert ensure_base(client, said.append) == tag == base_recipe().tag
    assert (client.images.get(tag).id, said) == (before, [])
    assert image.main() == 0
    assert capsys.readouterr().out == f"{tag}\n"


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
    output = run(client, ensure_base(client, quiet), "sh", "-c", script, user="12345:12345", **options)
    lines = [line for line in output.splitlines() if line]
    assert lines == ["OK", "first", "12345", "C.UTF-8", "Read-only", "install ok installed"]


@pytest.mark.engine
@needs_mmdebstrap
def test_builds_at_once_make_one_image_and_always_the_same(client: docker.DockerClient) -> None:
    recipe = msgspec.structs.replace(
        base_recipe(),
        registry_image=f"127.0.0.1:{unused_port()}/none:1",
        variant="extract",
        packages=("busybox-static",),
    )
    said: list[str] = []
    ids = set()
    with removed_afterwards(client, recipe.tag):
        with ThreadPoolExecutor(2) as pool:
            builds = [pool.submit(ensure_base, client, said.append, recipe) for _ in range(2)]
            assert [build.result() for build in builds] == [recipe.tag] * 2
        assert len([line for line in said if line.startswith("making it from this host")]) == 1
        assert "waiting for another build of the image" in said
        ids.add(client.images.get(recipe.tag).id)
        assert run(client, recipe.tag, "/bin/busybox", "echo", "hello") == "hello\n"
        client.images.remove(recipe.tag)
        ensure_base(client, quiet, recipe)
        ids.add(client.images.get(recipe.tag).id)
    assert len(ids) == 1


@pytest.mark.engine
@needs_mmdebstrap
def test_a_package_that_does_not_exist_is_named(client: docker.DockerClient) -> None:
    recipe = msgspec.structs.replace(
        base_recipe(),
        registry_image=f"127.0.0.1:{unused_port()}/none:1",
        variant="extract",
        packages=("sandkeep-has-no-such-package",),
    )
    with pytest.raises(ImageBuildFailed, match=r"mmdebstrap: .+; see whether apt-get update works"):
        ensure_base(client, quiet, recipe)
    assert not client.api.images(name=recipe.tag)


@contextmanager
def registry(layer: bytes, architecture: str) -> Iterator[str]:
    """As much of a registry as a pull of one image needs."""

    def digest(content: bytes) -> str:
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    config = json.dumps(
        {"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(layer)]}}
    ).encode()
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": len(config),
                "digest": digest(config),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.docker.image.rootfs.diff.tar",
                    "size": len(layer),
                    "digest": digest(layer),
                }
            ],
        }
    ).encode()
    served = {"1": (kind, manifest), digest(manifest): (kind, manifest)}
    served |= {digest(blob): ("application/octet-stream", blob) for blob in (config, layer)}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            kind, body = served.get(name, ("application/json", b"{}"))
            self.send_response(200 if name in served or self.path == "/v2/" else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Content-Digest", digest(body))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the default writes to the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}/tiny:1"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def tiny_layer(client: docker.DockerClient) -> bytes:
    """A shell and `rm`, with the libraries they need."""
    script = "tar -ch $(ldd /bin/sh /bin/rm | grep -o '/[^ :)]*' | sort -u) 2>/dev/null | base64"
    # As text, because the engine's log of a container's output is JSON and changes other bytes.
    output = run(client, ensure_base(client, quiet), "sh", "-c", script)
    return base64.b64decode(output)


@pytest.mark.engine
def test_a_registry_image_is_used_where_it_can_be_pulled(client: docker.DockerClient, tiny_layer: bytes) -> None:
    with registry(tiny_layer, base_recipe().arch) as reference:
        recipe = msgspec.structs.replace(base_recipe(), registry_image=reference, packages=())
        said: list[str] = []
        with removed_afterwards(client, recipe.tag, reference):
            assert ensure_base(client, said.append, recipe) == recipe.tag
            made = client.images.get(recipe.tag)
            assert made.labels == {"sandkeep.recipe": recipe.digest}
            assert made.attrs["Config"]["Cmd"] == ["sh"]
            assert set(recipe.environment.split()) <= set(made.attrs["Config"]["Env"])
            assert [line for line in said if "apt sources" in line] == []


@pytest.mark.engine
def test_a_registry_image_that_cannot_be_built_on_is_given_up(
    client: docker.DockerClient, tiny_layer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with registry(tiny_layer, base_recipe().arch) as reference:
        recipe = msgspec.structs.replace(base_recipe(), registry_image=reference)
        said: list[str] = []
        with removed_afterwards(client, recipe.tag, reference), pytest.raises(ImageToolMissing):
            ensure_base(client, said.append, recipe)
    assert [line for line in said if line.startswith("it cannot: The command")], said


@pytest.mark.engine
def test_a_silent_registry_does_not_hold_up_the_build(
    client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "REGISTRY_SILENCE_S", 1)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reference = f"127.0.0.1:{silent.getsockname()[1]}/none:1"
        said: list[str] = []
        with pytest.raises(ImageToolMissing):
            ensure_base(client, said.append, msgspec.structs.replace(base_recipe(), registry_image=reference))
    assert "it cannot: the engine got no answer in time" in said


@pytest.mark.engine
def test_an_archive_that_the_engine_refuses_is_an_error(client: docker.DockerClient, tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    layer.write_bytes(b"no tar" * 1000)
    recipe = msgspec.structs.replace(base_recipe(), packages=("damaged",))
    with (
        removed_afterwards(client, recipe.tag),
        pytest.raises(ImageBuildFailed, match=f"the engine refused {recipe.tag}: .+; look at its log and disk"),
    ):
        image._load(client, recipe, layer, quiet)
