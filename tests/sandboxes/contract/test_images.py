"""What we rely on of an engine's images."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandkeep.sandboxes import Keep
from sandkeep.sandboxes.errors import ImageNotFound
from sandkeep.sandboxes.recipe import parse_tag

from ..support import engine, shell


def test_an_image_is_built_exported_pruned_and_imported(keep: Keep, image_name: str, tmp_path: Path) -> None:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "file").write_text("from the context\n")
    (folder / "Dockerfile").write_text(
        f"FROM {keep.images.build('busybox').tag}\nADD file /file\nRUN cat /file >/copy\n"
    )
    built = keep.images.build(image_name, folder=folder, network=False)
    assert parse_tag(built.tag) == (image_name, built.version)
    assert [each.tag for each in keep.images.present() if each.name == image_name] == [built.tag]
    task = keep.create_task("small", image=image_name)
    assert shell(task, "cat /copy") == "from the context\n"
    file = tmp_path / "image.tar"
    exported = keep.images.export(image_name, file)
    assert keep.images.prune(0).removed == ()  # what a task uses stays
    task.complete()
    task.clean_up()
    assert built.tag in [each.tag for each in keep.images.prune(0).removed]
    with pytest.raises(ImageNotFound):
        keep.images.export(image_name, tmp_path / "other.tar")
    loaded = keep.images.load(file, expected=exported.id)
    assert (loaded.tag, loaded.layers) == (exported.tag, built.layers)
    again = keep.create_task("again", image=image_name)
    assert shell(again, "cat /copy") == "from the context\n"
    again.complete()


def test_what_no_registry_supplies_is_said_so(keep: Keep) -> None:
    with pytest.raises(ImageNotFound, match=r"'sandkeep-test.invalid/nothing:1' cannot be pulled \(.+\)"):
        keep.create_task("t", image="sandkeep-test.invalid/nothing:1")
    with engine() as client:
        assert client.api.images(name="sandkeep-test.invalid/nothing") == []
