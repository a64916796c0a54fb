"""The images of a keep: which of them a name stands for, and their making, listing, removal, export and import.

A name is that of a recipe (`base`, `developer`, `busybox`), of an image that this keep has made, or else one that the
engine or a registry knows. Making and removing are *decide, effect, outcome* like all else, on the stream
`image/<name>`; what a crash leaves without an outcome is settled by `reconcile`. A task keeps the version it was
created with. Older versions, and those of an older recipe, stay until they are pruned: nothing is replaced under it.

May be used by several threads and processes. While a task is being created its image cannot be pruned.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import docker
import docker.errors
import msgspec

from sandkeep.events import BadInput, Event, SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.projections import ImageCounts, ImageVersion, StateView
from sandkeep.projections import images as projection
from sandkeep.sandboxes import docker_archive, dockerfile, image, intent, stock
from sandkeep.sandboxes.docker_archive import Measured
from sandkeep.sandboxes.errors import BadImage, EngineUnreachable, ImageNotFound
from sandkeep.sandboxes.image import Made, Progress, unmeasured
from sandkeep.sandboxes.recipe import RECIPES, Recipe, check_name, parse_tag, tag_of, with_packages
from sandkeep.sandboxes.stock import Image, Pruned
from sandkeep.sandboxes.text import quiet

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_MAX_WORDS = 2000


@final
class ImageStore:
    """`Keep.images`."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep

    @contextlib.contextmanager
    def using(self, name: str | None, progress: Progress) -> Iterator[tuple[str, str]]:
        """As `resolve`; it is not pruned before the end of the block, when a task uses it."""
        with self._lock(fcntl.LOCK_SH):
            yield self.resolve(name, progress)

    @contextlib.contextmanager
    def chosen(self, name: str | None, progress: Progress) -> Iterator[str]:
        """As `using`, for a task that is about to be created: what it is to call its image. While no engine answers
        that is the name of a recipe, which its first command resolves."""
        with contextlib.ExitStack() as stack:
            try:
                tag = stack.enter_context(self.using(name, progress))[0]
            except EngineUnreachable:
                tag = name or "base"
                if tag not in RECIPES:
                    raise
            yield tag

    def resolve(self, name: str | None = None, progress: Progress = quiet) -> tuple[str, str]:
        """What the engine calls an image, and its id. By default it is the base image. That of a recipe is made if the
        engine lacks it, and one that is not ours is pulled. Raises `ImageNotFound`, and what making one raises."""
        if name == "":
            raise ImageNotFound("the name of an image cannot be empty; 'sandkeep images' lists those there are")
        name = name or "base"
        if name in RECIPES:
            made = self._recipe(RECIPES[name](), progress, unmeasured, wanted=True)
            return made.tag, made.id
        if parsed := parse_tag(name):
            return name, self._pinned(name, parsed[0], progress)
        if known := self._current(name):
            return known.tag, self._pinned(known.tag, name, progress)
        with self._keep.engine.connected() as client:
            try:
                found = image.inspect(client, name)["Id"]
            except docker.errors.ImageNotFound:
                found = image.fetch(client, name, progress, unmeasured)
            except docker.errors.APIError as error:
                raise ImageNotFound(f"{name!r} names no image ({' '.join(str(error.explanation).split())})") from error
            except ValueError as error:
                raise ImageNotFound(f"{name!r} names no image ({error})") from error
        return name, str(found)

    def build(
        self,
        name: str,
        *,
        folder: Path | None = None,
        reference: str | None = None,
        packages: Sequence[str] = (),
        network: bool = True,
        rebuild: bool = False,
        progress: Progress = quiet,
        measured: Measured = unmeasured,
    ) -> Image:
        """Make an image of ours: a recipe's, or with a name of your own from the Dockerfile in `folder`, from a
        registry's image (`reference`), or from the base and more Debian `packages`.

        A recipe's image that the engine has, and that is not too old, is left as it is unless `rebuild`. `measured` is
        told of bytes. Raises `BadInput`, `BadImage`, `ImageNotFound` and `ImageBuildFailed`.
        """
        check_name(name)
        sources = [folder is not None, reference is not None, bool(packages)]
        if sum(sources) != (0 if name in RECIPES else 1):
            raise BadInput(
                f"{name!r} is made from its recipe alone; choose another name"
                if name in RECIPES
                else f"say what {name!r} is made from: one of a Dockerfile, a registry's image, and packages"
            )
        if folder is not None:
            made = self._dockerfile(name, folder, network, progress, measured)
        elif reference is not None:
            from_ = reference

            def work(client: docker.DockerClient) -> Made:
                return image.pull(client, name, from_, progress, measured)

            made = self._record(name, "registry", reference[:_MAX_WORDS], work)
        else:
            recipe = with_packages(name, packages) if packages else RECIPES[name]()
            made = self._recipe(recipe, progress, measured, rebuild=rebuild, fresh=True)
        return self._listed(made.tag)

    def present(self) -> list[Image]:
        """All images of ours that the engine has, by name, the newest version first."""
        with self._keep.engine.connected() as client:
            return stock.take(client, self.versions(), stock.max_age_ns(self._keep.path))

    def versions(self) -> list[ImageVersion]:
        """All that this keep ever made or used, also what is gone."""
        with self._keep.projections.reading() as state:
            return list(projection.versions(state))

    def counts(self) -> list[ImageCounts]:
        """By name, how many tasks asked for an image, and how many had to wait until it was made."""
        with self._keep.projections.reading() as state:
            return list(projection.counts(state))

    def prune(self, budget: int, *, dry_run: bool = False, progress: Progress = quiet) -> Pruned:
        """Remove images until those that this keep knows take `budget` bytes at most; those that are not used longest
        first, none that a live task or any container uses. Layers that several share are counted once."""
        if budget < 0:
            raise BadInput("a budget is no less than 0 bytes")
        with self._lock(fcntl.LOCK_EX):
            with self._keep.engine.connected() as client:
                versions = self.versions()
                known = [each for each in self.present() if each.tag in {version.tag for version in versions}]
                live = {task.image for task in self._keep.tasks(*stock.LIVE)}
                used = {each["ImageID"] for each in client.api.containers(all=True)}
            chosen = stock.choose(known, budget, lambda each: each.tag in live or each.id in used)
            removed = chosen if dry_run else [each for each in chosen if self._remove(each, "budget", progress)]
        left = [each for each in known if each not in removed]
        return Pruned(tuple(removed), stock.disk(known), stock.disk(left), budget)

    def export(self, name: str, file: Path, *, progress: Progress = quiet, measured: Measured = unmeasured) -> Image:
        """Write an image into the new file `file`, which `load` and `docker load` read. Equal images give equal files.

        `name` is that of an image of ours, or what the engine calls it. It is not made for this: raises
        `ImageNotFound`.
        """
        found = self._listed(name)
        with image.temporary_file(named=True) as saved:
            progress(f"saving {found.tag}")
            with self._keep.engine.connected() as client, image.disk_errors():
                for chunk in client.api.get_image(found.tag):
                    saved.write(chunk)
                    measured(saved.tell(), max(found.size, saved.tell()))
            saved.flush()
            progress(f"writing {file}")
            contents = docker_archive.read(Path(saved.name), measured)
            # Of the configuration, which is the same in every engine.
            tag = tag_of(found.name, contents.id)
            with stock.new_file(file) as out:
                docker_archive.write(contents, out, tag, measured)
        return msgspec.structs.replace(found, id=contents.id, tag=tag)

    def load(
        self, file: Path, *, expected: str | None = None, progress: Progress = quiet, measured: Measured = unmeasured
    ) -> Image:
        """Give the engine the image in `file`, which `export` wrote, perhaps elsewhere. To import one is to trust it.

        It keeps its name, and is what that name stands for from now on. Raises `BadImage` for what is damaged, is not
        called like an image of ours, or has another id than `expected`.
        """
        progress(f"reading {file}")
        contents = docker_archive.read(file, measured)
        names = [parsed for tag in contents.tags if (parsed := parse_tag(tag))]
        if len(contents.tags) != 1 or len(names) != 1:
            raise BadImage(f"{file} is not called like one image of ours; 'sandkeep export-image' writes such files")
        name = names[0][0]
        if contents.tags[0] != tag_of(name, contents.id):
            raise BadImage(f"{file} says that it is {contents.tags[0]}, but its id is {contents.id}; export it anew")
        if expected is not None and contents.id != expected:
            raise BadImage(f"{file} holds {contents.id}, not {expected[:80]!r}; get it from somebody you trust")

        def work(client: docker.DockerClient) -> Made:
            if (arch := client.version()["Arch"]) != contents.architecture:
                raise BadImage(f"{file} is for {contents.architecture[:20]!r}, not for this engine's {arch}")
            loaded, reused = image.load(client, contents, progress, measured)
            return image.publish(client, name, loaded, "archive", reused=reused)

        return self._listed(self._record(name, "archive", contents.id, work).tag)

    def reconcile(self) -> list[str]:
        """Give what a crash left behind an outcome, and tell what was done. For the steward."""
        with self._keep.projections.reading() as state:
            found = [each for each in projection.pending(state) if intent.abandoned(self._keep.intents, each.intent)]
        done = []
        for each in found:
            why = ("interrupted", "the process that did this ended before it was done")
            event: ev.Outcome = ev.ImageFailed(each.intent, *why)
            if each.tag:
                with self._keep.engine.connected() as client:
                    there = each.tag in image.our_tags(client)
                removed = ev.ImageRemoved(each.intent, each.tag)
                event = ev.ImageRemovalFailed(each.intent, *why) if there else removed
            self._settle(each.name, event)
            done.append(f"image {each.name}: its {'removal' if each.tag else 'making'} was interrupted")
        return done

    def _recipe(
        self,
        recipe: Recipe,
        progress: Progress,
        measured: Measured,
        *,
        wanted: bool = False,
        rebuild: bool = False,
        fresh: bool = False,
    ) -> Made:
        """The image of a recipe; one that is too old is made anew if it is to be `fresh`."""
        with self._keep.engine.connected() as client:
            found = image.find(client, recipe)
        if found is not None and not rebuild and not (fresh and self._listed(found.tag).stale):
            self._tell_if_stale(found.tag, progress)
            return found

        def work(client: docker.DockerClient) -> Made:
            if found is None and not rebuild:  # another may be making it just now
                return image.ensure(client, recipe, progress, measured)
            return image.make(client, recipe, progress, measured)

        return self._record(recipe.name, "recipe", recipe.digest, work, wanted=wanted, recipe=recipe.digest)

    def _tell_if_stale(self, tag: str, progress: Progress) -> None:
        with self._keep.projections.reading() as state:
            known = projection.find(state, tag)
        # The engine could tell of more of them, at the price of a question for each task that is created.
        if known is not None and known.position and stock.is_stale(known.made_ns, stock.max_age_ns(self._keep.path)):
            progress(f"{tag} is older than it may be; 'sandkeep build-image {known.name}' makes it anew")

    def _dockerfile(self, name: str, folder: Path, network: bool, progress: Progress, measured: Measured) -> Made:
        def work(client: docker.DockerClient) -> Made:
            def base() -> str:
                return self.resolve(None, progress)[0]

            return dockerfile.build(client, name, folder, base, progress, measured, network=network)

        return self._record(name, "dockerfile", "", work)

    def _record(
        self,
        name: str,
        source: str,
        reference: str,
        work: Callable[[docker.DockerClient], Made],
        *,
        wanted: bool = False,
        recipe: str = "",
    ) -> Made:
        """Do the work of making an image, between the events that say so."""
        with intent.held(self._keep.intents) as made:
            self._append(name, ev.ImageRequested(made, source, reference, wanted))
            begun = time.monotonic_ns()
            try:
                with self._keep.engine.connected() as client:
                    done = work(client)
            except (SandkeepError, OSError) as error:
                code = error.code if isinstance(error, SandkeepError) else "os-error"
                self._settle(name, ev.ImageFailed(made, code, str(error)[:_MAX_WORDS]))
                raise
            except BaseException:
                self._settle(name, ev.ImageFailed(made, "interrupted", "the caller ended it"))
                raise
            took = time.monotonic_ns() - begun
            event = ev.ImageBuilt(made, done.tag, done.id, done.size, done.origin, recipe, took, done.reused)
            self._settle(name, event)
        return done

    def _remove(self, found: Image, reason: str, progress: Progress) -> bool:
        """Take our name from an image; false if the engine found that something uses it."""
        progress(f"removing {found.tag}")
        with intent.held(self._keep.intents) as made:
            self._append(found.name, ev.ImageRemovalRequested(made, found.tag, reason))
            try:
                with self._keep.engine.connected() as client, contextlib.suppress(docker.errors.ImageNotFound):
                    client.api.remove_image(found.tag)
            except SandkeepError as error:
                self._settle(found.name, ev.ImageRemovalFailed(made, error.code, str(error)[:_MAX_WORDS]))
                if error.code == "engine-unreachable":
                    raise
                return False
            self._settle(found.name, ev.ImageRemoved(made, found.tag))
        return True

    def _pinned(self, tag: str, name: str, progress: Progress) -> str:
        """The id of exactly this version. Where it can be made again from its recipe, it must come to be the same."""
        with self._keep.engine.connected() as client:
            try:
                found = str(image.inspect(client, tag)["Id"])
            except docker.errors.ImageNotFound:
                found = ""
        if not found and name in RECIPES:
            made = self._recipe(RECIPES[name](), progress, unmeasured, wanted=True)
            found = made.id if made.tag == tag else ""
        if not found or tag_of(name, found) != tag:
            raise ImageNotFound(f"there is no image {tag!r} any more; import it, or create the task anew")
        return found

    def _current(self, name: str) -> ImageVersion | None:
        with self._keep.projections.reading() as state:
            return projection.current(state, name) if len(name) <= 64 else None

    def _listed(self, name: str) -> Image:
        """The current version of the image `name`, or the one that the engine calls so. Raises `ImageNotFound`."""
        for each in self.present():
            if each.tag == name or (each.name == name and each.current):
                return each
        raise ImageNotFound(f"the engine has no image of ours called {name!r}; 'sandkeep images' lists those there are")

    def _append(self, name: str, event: Event) -> None:
        self._keep.log.append(projection.STREAM + name, [event], actor=self._keep.actor)

    def _settle(self, name: str, outcome: ev.Outcome) -> None:
        """Store what came of an intent, unless another has."""

        def decide(state: StateView) -> list[Event]:
            return [outcome] if projection.is_pending(state, outcome.intent) else []

        self._keep.log.decide(projection.STREAM + name, decide, actor=self._keep.actor)

    @contextlib.contextmanager
    def _lock(self, mode: int) -> Iterator[None]:
        with open(self._keep.path / "run" / "images.lock", "ab") as file:
            fcntl.flock(file, mode)
            yield
