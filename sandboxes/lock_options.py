"""What may be asked of a lock: modes, leases, timeouts, and reasons to break it."""

from __future__ import annotations

import math

from sandkeep.events import BadInput
from sandkeep.projections import Mode
from sandkeep.sandboxes.errors import BadTimeout

DEFAULT_LEASE_SECONDS = 60.0
MIN_LEASE_SECONDS = 0.1
MAX_LEASE_SECONDS = 86_400.0
MAX_TIMEOUT_SECONDS = 86_400.0 * 365
MAX_REASON = 1000


def check_mode(mode: str) -> Mode:
    """The mode, if it is one. Raises `BadInput`."""
    try:
        return Mode(mode)
    except ValueError as error:
        raise BadInput(f"{mode!r} is no mode of a lock; give 'exclusive' or 'collaborative'") from error


def check_lease(seconds: float) -> int:
    """The lease in nanoseconds, if it is one. Raises `BadTimeout`."""
    if not (math.isfinite(seconds) and MIN_LEASE_SECONDS <= seconds <= MAX_LEASE_SECONDS):
        raise BadTimeout(
            f"a lease of {seconds:g} s cannot be; give at least {MIN_LEASE_SECONDS:g} and at most"
            f" {MAX_LEASE_SECONDS:.0f}"
        )
    return int(seconds * 1e9)


def check_timeout(seconds: float | None) -> int | None:
    """The timeout in nanoseconds, if it is one. Raises `BadTimeout`."""
    if seconds is None:
        return None
    if not (math.isfinite(seconds) and 0 <= seconds <= MAX_TIMEOUT_SECONDS):
        raise BadTimeout(f"a timeout of {seconds:g} s cannot be; give 0 to try only once, more to wait, none for ever")
    return int(seconds * 1e9)


def check_reason(reason: str) -> str:
    """The reason without spaces around it, if it can be stored and shown. Raises `BadInput`."""
    reason = reason.strip()
    if not 1 <= len(reason) <= MAX_REASON or not reason.isprintable():
        raise BadInput(f"a lock is broken for a reason, 1 to {MAX_REASON} printable characters on one line; give it")
    return reason
