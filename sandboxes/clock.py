"""The time that leases are measured by: the machine's boot clock, not the wall's.

CLOCK_BOOTTIME (clock_gettime(2)) counts from boot, also while the machine sleeps, and nobody can set it. It means
something only within one boot, so a reading names the boot too. All processes on a keep run on one machine, so no
holder of a lease from another boot can be alive, and such a lease is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from sandkeep.events.catalogue import Lease
from sandkeep.events.journal import this_boot


class BootTime(msgspec.Struct, frozen=True):
    """A reading of the boot clock."""

    boot: str
    ns: int

    def lease(self, lease_ns: int) -> Lease:
        """A lease that begins now."""
        return Lease(self.boot, self.ns + lease_ns)

    def left_ns(self, lease: Lease) -> int:
        """How much of a lease is left; 0 when it is over."""
        return max(0, lease.deadline_ns - self.ns) if lease.boot == self.boot else 0

    def over(self, lease: Lease) -> bool:
        """Whether a lease has run out, or is of another boot."""
        return self.left_ns(lease) == 0


Clock: TypeAlias = Callable[[], BootTime]
"""Reads the boot clock. Injected wherever a lease is judged, so that tests can set it."""


def boot_clock() -> Clock:
    """The clock of this machine."""
    boot = this_boot()
    return lambda: BootTime(boot, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
