"""The images of a keep, on a real engine."""

from __future__ import annotations

import fcntl
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import msgspec
import pytest

from sandkeep.events import BadInput
from sandkeep.events import catalogue as ev
from sandkeep.projections import ImageCounts
from sandkeep.sandboxes import Keep, docker_archive, image, recipe
from sandkeep.sandboxes.errors import BadImage, EngineUnreachable, ImageBuildFailed, ImageNotFound
from sandkeep.sandboxes.recipe import RECIPES, base_recipe, busybox_recipe
from sandkeep.sandboxes.text import quiet

from ..conftest import close
from .registries import needs_mmdebstrap
from .support import container_of, remove_containers, shell, stopped_at, types

pytestmark = pytest.mark.engine

BASE = "ARG SANDKEEP_BASE\nFROM $SANDKEEP_BASE\n"


@pytest.fixture
def keep(tmp_path: Path, image_name: str) -> Iterator[Keep]:
    """As everywhere, but it ends before the image of that name, which its sandboxes may use."""
    made = Keep.init(tmp_path / "keep", actor="tester")
    yield made
    close(made)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a folder with a Dockerfile whose image holds that text, and nothing else unless it says so."""
    path = tmp_path / "context"
    path.mkdir()

    def write(text: str, begin: str = "FROM scratch\n") -> Path:
        (path / "Dockerfile").write_text(f"{begin}COPY content /version\n")
        (path / "content").write_text(text)
        return path

    return write


def recorded(keep: Keep, name: str) -> list[str]:
    return types(keep.log.read_stream(f"image/{name}"))


def counted(keep: Keep, name: str) -> ImageCounts:
    return next(each for each in keep.images.counts() if each.name == name)


def tags(client: docker.DockerClient, name: str) -> set[str]:
    return {tag for each in client.api.images(name=f"sandkeep/{name}") for tag in each["RepoTags"]}


# ---- which image a name stands for


def test_without_a_name_it_is_the_base(keep: Keep, client: docker.DockerClient) -> None:
    tag, image_id = keep.images.resolve(None)
    assert keep.images.resolve("base") == keep.images.resolve(tag) == (tag, image_id)
    assert client.api.images(name=tag)[0]["Id"] == image_id
    assert tag == recipe.tag_of("base", image_id)
    assert recorded(keep, "base") == []  # it was there, so nothing was made


@needs_mmdebstrap
def test_a_sandbox_runs_on_two_megabytes(keep: Keep) -> None:
    keep.images.build("busybox")
    task = keep.create_task("small", image="busybox")
    assert task.state.image == keep.images.resolve("busybox")[0]
    assert shell(task, "echo hello >x && tail -n 1 x") == "hello\n"
    [entry] = [each for each in keep.images.present() if each.tag == task.state.image]
    assert entry.current
    assert entry.uses == 1
    assert entry.used_ns == task.state.created_ns
    assert counted(keep, "busybox").hit_rate == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "cannot be empty"),
        ("sandkeep/base:0123456789ab", "there is no image 'sandkeep/base:0123456789ab' any more"),
        ("sandkeep/nothing:0123456789ab", "any more"),
        ("sandkeep/base:latest", "no registry may supply it"),
        ("docker.io/sandkeep/base", "no registry may supply it"),
        ("index.docker.io/sandkeep/base:0123456789ab", "no registry may supply it|any more"),
        ("A B", "names no image"),
        ("a.invalid/x:1", "cannot be pulled"),
        ("x" * 300, "names no image|cannot be pulled"),
    ],
)
def test_what_names_no_image_is_refused(keep: Keep, name: str, reason: str) -> None:
    with pytest.raises(ImageNotFound, match=reason):
        keep.images.resolve(name)


def test_a_task_keeps_the_version_it_was_created_with(
    keep: Keep, folder: Callable[..., Path], image_name: str, client: docker.DockerClient
) -> None:
    first = keep.images.build(image_name, folder=folder("one\n", BASE))
    task = keep.create_task("old", image=image_name)
    task.start_sandbox()
    second = keep.images.build(image_name, folder=folder("two\n", BASE))
    assert first.tag != second.tag
    assert [each.current for each in keep.images.present() if each.name == image_name] == [True, False]
    client.api.remove_container(container_of(task), force=True)
    assert shell(task, "cat /version") == "one\n"
    assert shell(keep.create_task("new", image=image_name), "cat /version") == "two\n"
    assert [each.image for each in keep.tasks()] == [first.tag, second.tag]


def test_a_version_that_somebody_replaced_is_refused(
    keep: Keep, folder: Callable[..., Path], image_name: str, client: docker.DockerClient
) -> None:
    made = keep.images.build(image_name, folder=folder("x"))
    client.api.tag(keep.images.resolve("base")[1], f"sandkeep/{image_name}", made.version, force=True)
    with pytest.raises(ImageNotFound, match="any more"):
        keep.images.resolve(image_name)


def test_a_name_is_its_keep_s_alone(keep: Keep, folder: Callable[..., Path], image_name: str, tmp_path: Path) -> None:
    made = keep.images.build(image_name, folder=folder("x"))
    with Keep.init(tmp_path / "other") as other:
        with pytest.raises(ImageNotFound):
            other.images.resolve(image_name)
        [seen] = [each for each in other.images.present() if each.tag == made.tag]
        assert not seen.current
        assert other.images.prune(0).removed == ()
    assert keep.images.resolve(image_name) == (made.tag, made.id)


# ---- making


def test_what_was_made_is_on_record(keep: Keep, folder: Callable[..., Path], image_name: str) -> None:
    made = keep.images.build(image_name, folder=folder("x"))
    asked, built = keep.log.read_stream(f"image/{image_name}")
    assert isinstance(asked.event, ev.ImageRequested)
    assert asked.event == ev.ImageRequested(asked.event.intent, "dockerfile", "", False)
    assert isinstance(built.event, ev.ImageBuilt)
    assert built.event == ev.ImageBuilt(
        asked.event.intent, made.tag, made.id, made.size, "dockerfile", "", built.event.took_ns, False
    )
    assert (made.name, made.current, made.stale, made.source) == (image_name, True, False, "dockerfile")
    assert made.made_ns == built.time_ns


def test_what_could_not_be_made_is_on_record(keep: Keep, folder: Callable[..., Path], image_name: str) -> None:
    with pytest.raises(ImageBuildFailed):
        keep.images.build(image_name, folder=folder("x", "FROM scratch\nRUN nothing\n"))
    failed = list(keep.log.read_stream(f"image/{image_name}"))[-1].event
    assert isinstance(failed, ev.ImageFailed)
    assert failed.code == "image-build-failed"
    assert "cannot be built" in failed.message
    assert keep.images.reconcile() == []

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep.images.build(image_name, folder=folder("x"), measured=interrupt)
    assert recorded(keep, image_name) == ["ImageRequested", "ImageFailed"] * 2
    assert counted(keep, image_name) == ImageCounts(image_name, failures=2)


def test_what_an_image_is_made_from_is_said_once(keep: Keep, tmp_path: Path) -> None:
    for name, options in (
        ("web", {}),
        ("web", {"folder": tmp_path, "packages": ["zip"]}),
        ("base", {"folder": tmp_path}),
        ("developer", {"reference": "debian"}),
        ("Web", {"reference": "debian"}),
        ("web", {"packages": ["; true"]}),
    ):
        with pytest.raises(BadInput):
            keep.images.build(name, **options)
    assert [record.type for record in keep.events()] == ["KeepCreated"]


@needs_mmdebstrap
def test_a_task_that_waits_for_its_image_is_a_miss(
    keep: Keep, image_name: str, monkeypatch: pytest.MonkeyPatch, client: docker.DockerClient
) -> None:
    monkeypatch.setitem(RECIPES, image_name, lambda: msgspec.structs.replace(busybox_recipe(), name=image_name))
    task = keep.create_task("waits", image=image_name)
    keep.create_task("waits no more", image=image_name)
    assert recorded(keep, image_name) == ["ImageRequested", "ImageBuilt"]
    assert counted(keep, image_name) == ImageCounts(image_name, uses=2, misses=1, builds=1)
    assert counted(keep, image_name).hit_rate == 0.5
    # What went away comes to be the same again, and the task goes on with it.
    remove_containers(keep.id)
    client.api.remove_image(task.state.image)
    assert shell(task, "echo on") == "on\n"
    assert tags(client, image_name) == {task.state.image}


@needs_mmdebstrap
def test_an_image_that_is_too_old_is_made_anew_when_asked_for(keep: Keep) -> None:
    before = keep.images.build("busybox")
    assert not before.stale
    seen = len(recorded(keep, "busybox"))
    assert keep.images.build("busybox") == before
    assert len(recorded(keep, "busybox")) == seen
    with (keep.path / "keep.toml").open("a") as file:
        file.write("[images]\nmax_age_days = 0\n")
    assert [each.stale for each in keep.images.present() if each.tag == before.tag] == [True]
    task = keep.create_task("uses it all the same", image="busybox")
    assert (task.state.image, len(recorded(keep, "busybox"))) == (before.tag, seen)
    again = keep.images.build("busybox")
    said: list[str] = []
    keep.create_task("is told so", image="busybox", progress=said.append)
    assert f"{again.tag} is older than it may be; 'sandkeep build-image busybox' makes it anew" in said
    assert (again.id, again.source) == (before.id, "recipe")
    built = list(keep.log.read_stream("image/busybox"))[-1].event
    assert isinstance(built, ev.ImageBuilt)
    assert (built.origin, built.reused, built.recipe) == ("packages", True, busybox_recipe().digest)


# ---- removing


def test_the_least_used_go_and_none_that_is_in_use(
    keep: Keep, folder: Callable[..., Path], image_name: str, client: docker.DockerClient
) -> None:
    used = keep.images.build(image_name, folder=folder("used", BASE))
    task = keep.create_task("a", image=image_name)
    idle = keep.images.build(image_name, folder=folder("idle", BASE))
    waiting = keep.create_task("b", image=idle.tag)
    waiting.start_sandbox()
    client.api.remove_container(container_of(waiting), force=True)  # it may be started anew at any time
    free = [keep.images.build(image_name, folder=folder(f"{number}" * 5000)) for number in range(2)]
    found = keep.images.prune(0, dry_run=True)
    assert [each.tag for each in found.removed] == [each.tag for each in free]
    assert tags(client, image_name) == {each.tag for each in (used, idle, *free)}
    done = keep.images.prune(found.before - 1)
    assert [each.tag for each in done.removed] == [free[0].tag]
    assert done.after == done.before - 5000
    for each in (task, waiting):
        each.complete()
    keep.images.prune(0)
    assert tags(client, image_name) == set()
    assert recorded(keep, image_name)[-6:] == ["ImageRemovalRequested", "ImageRemoved"] * 3
    assert counted(keep, image_name).removed == 4
    with pytest.raises(ImageNotFound):
        keep.images.resolve(image_name)
    assert keep.images.resolve("base")[1] in {each["Id"] for each in client.api.images()}


def test_what_another_s_container_uses_stays(
    keep: Keep, folder: Callable[..., Path], image_name: str, client: docker.DockerClient
) -> None:
    made = keep.images.build(image_name, folder=folder("x"))
    container = client.api.create_container(made.id, ["x"])["Id"]
    try:
        assert keep.images.prune(0).removed == ()
        # As if it had been made while we were looking: the engine sees it, and that is on record.
        assert not keep.images._remove(made, "budget", quiet)
        assert recorded(keep, image_name)[-2:] == ["ImageRemovalRequested", "ImageRemovalFailed"]
        assert tags(client, image_name) == {made.tag}
    finally:
        client.api.remove_container(container)


def test_nothing_is_pruned_while_a_task_is_created(keep: Keep) -> None:
    def free() -> bool:
        with open(keep.path / "run" / "images.lock", "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    seen: list[bool] = []
    keep.create_task("a", progress=lambda message: seen.append(free()))
    assert seen
    assert not any(seen)
    assert free()
    with keep.images._lock(fcntl.LOCK_EX):
        assert not free()


def test_a_budget_below_nothing_is_none(keep: Keep) -> None:
    with pytest.raises(BadInput, match="a budget is no less than 0 bytes"):
        keep.images.prune(-1)


# ---- files


def test_an_image_travels_by_file(
    keep: Keep, folder: Callable[..., Path], image_name: str, tmp_path: Path, client: docker.DockerClient
) -> None:
    made = keep.images.build(image_name, folder=folder("x"))
    assert keep.images.export(image_name, tmp_path / "a.tar") == made
    keep.images.export(made.tag, tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with pytest.raises(BadInput, match="name a file that does not exist yet"):
        keep.images.export(image_name, tmp_path / "a.tar")
    keep.images.prune(0)
    assert tags(client, image_name) == set()
    with pytest.raises(ImageNotFound):
        keep.images.export(image_name, tmp_path / "c.tar")
    assert not (tmp_path / "c.tar").exists()
    with Keep.init(tmp_path / "other") as other:
        with pytest.raises(BadImage, match="get it from somebody you trust"):
            other.images.load(tmp_path / "a.tar", expected="sha256:0")
        assert recorded(other, image_name) == []
        loaded = other.images.load(tmp_path / "a.tar", expected=made.id)
        assert (loaded.tag, loaded.id, loaded.source, loaded.current) == (made.tag, made.id, "archive", True)
        assert other.images.resolve(image_name) == (made.tag, made.id)
        assert recorded(other, image_name) == ["ImageRequested", "ImageBuilt"]
        assert client.api.images(name=made.tag)[0]["Labels"] == {"sandkeep.image": image_name}


def test_an_archive_is_only_loaded_under_a_name_that_is_its_own(
    keep: Keep, folder: Callable[..., Path], image_name: str, tmp_path: Path, client: docker.DockerClient
) -> None:
    made = keep.images.build(image_name, folder=folder("x"))
    for number, name in enumerate(("debian:12", "sandkeep/base:0123456789ab", f"sandkeep/{image_name}:latest")):
        file = tmp_path / f"{number}.tar"
        contents = docker_archive.read(exported(keep, made.tag, tmp_path / f"from{number}.tar"), image.unmeasured)
        with file.open("wb") as out:
            docker_archive.write(contents, out, name, image.unmeasured)
        with pytest.raises(BadImage):
            keep.images.load(file)
    assert not client.api.images(name="sandkeep/base:0123456789ab")
    (tmp_path / "untagged.tar").write_bytes(b"")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    for name in ("untagged.tar", "empty.tar"):
        with pytest.raises(BadImage):
            keep.images.load(tmp_path / name)
    assert len(recorded(keep, image_name)) == 2


def exported(keep: Keep, tag: str, file: Path) -> Path:
    keep.images.export(tag, file)
    return file


def test_an_image_for_another_architecture_is_not_loaded(
    keep: Keep, tmp_path: Path, image_name: str, client: docker.DockerClient
) -> None:
    contents = docker_archive.compose(msgspec.structs.replace(base_recipe(), arch="m68k"), [])
    tag = recipe.tag_of(image_name, contents.id)
    with (tmp_path / "a.tar").open("wb") as out:
        docker_archive.write(contents, out, tag, image.unmeasured)
    with pytest.raises(BadImage, match="is for 'm68k', not for this engine's"):
        keep.images.load(tmp_path / "a.tar")
    assert tags(client, image_name) == set()
    assert recorded(keep, image_name) == ["ImageRequested", "ImageFailed"]


# ---- crashes


@pytest.mark.parametrize("step", ["before:image.follow", "before:image.publish", "after:image.publish"])
def test_a_build_that_was_cut_short_is_settled(
    keep: Keep, folder: Callable[..., Path], image_name: str, step: str, client: docker.DockerClient
) -> None:
    made = folder("x")
    keep.close()
    with stopped_at(step, "build-image", keep.path, image_name, os.fspath(made)):
        pass
    with Keep.open(keep.path) as again:
        assert again.reconcile(again=True) == [f"image {image_name}: its making was interrupted"]
        assert recorded(again, image_name) == ["ImageRequested", "ImageFailed"]
        assert again.reconcile(again=True) == []
        settled = list(again.log.read_stream(f"image/{image_name}"))[-1].event
        assert isinstance(settled, ev.ImageFailed)
        again.images._settle(image_name, settled)  # as another would who found it at the same time
        assert len(recorded(again, image_name)) == 2
        built = again.images.build(image_name, folder=made)
        assert again.images.resolve(image_name) == (built.tag, built.id)
        assert tags(client, image_name) == {built.tag}
        assert again.verify().ok


@pytest.mark.parametrize(("step", "there"), [("before:images._settle", False), ("after:images._append", True)])
def test_a_removal_that_was_cut_short_is_settled_by_what_is_there(
    keep: Keep, folder: Callable[..., Path], image_name: str, step: str, there: bool, client: docker.DockerClient
) -> None:
    made = keep.images.build(image_name, folder=folder("x"))
    keep.close()
    with stopped_at(step, "prune-images", keep.path):
        assert tags(client, image_name) == ({made.tag} if there else set())
        # Somebody else leaves what a living process does alone.
        with Keep.open(keep.path) as other:
            assert other.images.reconcile() == []
    with Keep.open(keep.path) as again:
        assert again.reconcile(again=True) == [f"image {image_name}: its removal was interrupted"]
        assert recorded(again, image_name)[-1] == ("ImageRemovalFailed" if there else "ImageRemoved")


def test_an_engine_that_is_away_is_said(keep: Keep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    for ask in (keep.images.present, keep.images.resolve, lambda: keep.images.prune(0)):
        with pytest.raises(EngineUnreachable):
            ask()
    assert [record.type for record in keep.events()] == ["KeepCreated"]
