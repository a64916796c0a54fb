"""The events of an image: its making, from whatever source, and its removal. That a task uses one stands in
`TaskCreated`."""

from __future__ import annotations

from sandkeep.events.catalogue.common import Failure, Intent, Outcome
from sandkeep.events.schema import event


@event(version=1)
class ImageRequested(Intent, frozen=True):
    """An image is about to be made from `source`: `recipe`, `dockerfile`, `registry` or `archive`.

    `reference` is the recipe's digest, the registry's name for it, or empty. A task waits for it if it is `wanted`.
    """

    source: str
    reference: str
    wanted: bool


@event(version=1)
class ImageBuilt(Outcome, frozen=True):
    """The engine has the image under the name `tag`, with this id. `origin` is what it was really made from: a recipe
    may have been made with a `registry`'s image, or from Debian `packages` alone. It was `reused` if the engine had it.
    """

    tag: str
    id: str
    size: int
    origin: str
    recipe: str
    took_ns: int
    reused: bool


@event(version=1)
class ImageFailed(Failure, frozen=True):
    """There is no image."""


@event(version=1)
class ImageRemovalRequested(Intent, frozen=True):
    """The name `tag` is about to be taken from an image, which the engine removes if it has no other."""

    tag: str
    reason: str


@event(version=1)
class ImageRemoved(Outcome, frozen=True):
    """The engine has no image of the name `tag` any more."""

    tag: str


@event(version=1)
class ImageRemovalFailed(Failure, frozen=True):
    """The image is still there."""
