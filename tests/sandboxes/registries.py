"""What the tests of images share: a registry, containers that run once, and images that are gone afterwards."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import docker
import pytest

needs_mmdebstrap = pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed")


@contextmanager
def removed_afterwards(client: docker.DockerClient, *tags: str) -> Iterator[None]:
    try:
        yield
    finally:
        for tag in tags:
            if client.api.images(name=tag):
                client.images.remove(tag, force=True)


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


@contextmanager
def registry(layer: bytes, architecture: str, name: str = "tiny") -> Iterator[str]:
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
        yield f"127.0.0.1:{server.server_port}/{name}:1"
    finally:
        server.shutdown()
        server.server_close()
