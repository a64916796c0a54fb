"""The events of what a sandbox may use: limits that change, limits that are neared, and more that is asked for."""

from __future__ import annotations

from sandkeep.events.catalogue.common import Failure, Intent, Limits, Outcome
from sandkeep.events.catalogue.lock import Lease
from sandkeep.events.schema import Event, event


@event(version=1)
class LimitsRequested(Intent, frozen=True):
    """The task is about to have these limits; so is its sandbox `container`, if one lives."""

    limits: Limits
    container: str | None
    reason: str


@event(version=1)
class LimitsSet(Outcome, frozen=True):
    """The task, and its sandbox if there is one, has the limits that were asked for."""


@event(version=1)
class LimitsFailed(Failure, frozen=True):
    """The limits are what they were."""


@event(version=1)
class LimitNeared(Event, frozen=True):
    """The sandbox uses `percent` or more of what it may have of a `resource`: `memory`, `pids` or `disk`."""

    container: str
    resource: str
    percent: int
    used: int
    limit: int


@event(version=1)
class LimitEased(Event, frozen=True):
    """The sandbox has used clearly less of a `resource` again, or may use more of it."""

    container: str
    resource: str
    used: int
    limit: int


@event(version=1)
class SandboxMeasured(Event, frozen=True):
    """What the sandbox has used so far.

    `memory_bytes` is the most that was seen of what cannot be reclaimed, `pids` that of processes; the others are sums.
    """

    container: str
    memory_bytes: int
    pids: int
    cpu_ns: int
    throttled_ns: int
    oom_kills: int


@event(version=1)
class ExtensionRequested(Event, frozen=True):
    """The sandbox has nearly used up its memory: it is about to be frozen and its workspace to be recorded.

    It would need `wanted_bytes`. When nobody has answered until `answer_by`, that is a no.
    """

    extension: str
    container: str
    used_bytes: int
    limit_bytes: int
    wanted_bytes: int
    answer_by: Lease


@event(version=1)
class ExtensionPrepared(Event, frozen=True):
    """The sandbox stands still: `frozen`, or held at its limit by the kernel. `checkpoint` is that of its workspace,
    None if there is none, and then `problem` says why."""

    extension: str
    frozen: bool
    checkpoint: str | None
    problem: str


@event(version=1)
class ExtensionGranted(Event, frozen=True):
    """The sandbox may have `memory_bytes`."""

    extension: str
    memory_bytes: int
    reason: str


@event(version=1)
class ExtensionDenied(Event, frozen=True):
    """The sandbox has to do with what it has; with `stop` it is removed, else the kernel may end what wants more."""

    extension: str
    stop: bool
    reason: str


@event(version=1)
class ExtensionEnded(Event, frozen=True):
    """The sandbox goes on, `extended` or `resumed` as it was, or was `stopped`, or is `gone` by itself."""

    extension: str
    outcome: str
