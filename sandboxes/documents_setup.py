"""What the verbs that set things up answer with; see `documents`."""

from __future__ import annotations

import msgspec


class Change(msgspec.Struct, frozen=True):
    """A file of an agent's. `action` is `added`, `changed` or `removed`; or it stays as it is: `unchanged`, or
    `foreign` if it is not ours to change. `diff` is a unified one, and `kept` the copy of what it was, if there is
    one."""

    client: str
    path: str
    action: str
    diff: str
    kept: str | None
