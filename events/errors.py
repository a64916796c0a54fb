"""The errors of the whole library: one base, a stable code each, an exit status for the command line.

Every message says what was refused, why, and what to do next, on one line. `BadInput` and what derives from
it means that the caller's words are at fault (exit status 2); everything else is an action that was
refused or failed (exit status 1).
"""

from __future__ import annotations


class SandkeepError(Exception):
    """Base of everything this library raises on purpose.

    `code` is stable across releases: scripts and agents may match on it.
    """

    code = "error"
    exit_status = 1


class BadInput(SandkeepError):
    """The caller's input is at fault; the same call fails again until it is changed."""

    code = "bad-input"
    exit_status = 2


class RevisionConflict(SandkeepError):
    """The stream is not at the revision that the caller expected; read it again and decide anew."""

    code = "revision-conflict"


class KeyReused(SandkeepError):
    """An idempotency key came back with other events than it was first used for."""

    code = "key-reused"


class StaleFence(SandkeepError):
    """A fencing token older than one the stream has already seen: another holder was granted the lock."""

    code = "stale-fence"


class LimitReached(SandkeepError):
    """A size or a count is over its limit."""

    code = "limit-reached"


class LogDamaged(SandkeepError):
    """The log's bytes are not what was written: a checksum, a link or a sequence does not hold."""

    code = "log-damaged"


class LogUnavailable(SandkeepError):
    """The log cannot be opened, read or written."""

    code = "log-unavailable"


class LogBusy(SandkeepError):
    """Others use the log in a way that excludes this: a recovery must be alone."""

    code = "log-busy"


class RecoveryRefused(SandkeepError):
    """Not all of the log can be rebuilt, and the caller has not allowed to lose any of it."""

    code = "recovery-refused"


class BadEvent(LogDamaged):
    """A record of a known type has a body that does not fit the type."""

    code = "bad-event"


class BlobMissing(SandkeepError):
    """No content is stored under this digest."""

    code = "blob-missing"


class BlobDamaged(SandkeepError):
    """Stored content no longer matches its digest."""

    code = "blob-damaged"


class BlobsUnavailable(SandkeepError):
    """The index of the packs that blobs lie in cannot be read or written."""

    code = "blobs-unavailable"


class SubscriptionBusy(SandkeepError):
    """Another consumer has this durable subscription."""

    code = "subscription-busy"


class SubscriptionHalted(SandkeepError):
    """A durable subscription stands still before a record that its handler could not deal with."""

    code = "subscription-halted"


class SubscriptionDamaged(SandkeepError):
    """What is stored of a durable subscription's position cannot be right."""

    code = "subscription-damaged"


class BadKey(BadInput):
    """What was given is no verifier key."""

    code = "bad-key"


class NotABundle(BadInput):
    """What was given is no audit bundle, or one of another version."""

    code = "not-a-bundle"


class BundleDamaged(SandkeepError):
    """An audit bundle is cut short, or does not go on as its format has it."""

    code = "bundle-damaged"


class BadNote(SandkeepError):
    """A signed note is not of the form that notes have, or does not say what it should."""

    code = "bad-note"


class BadSignature(BadNote):
    """A note's signature is not that of the key it names."""

    code = "bad-signature"


class UnknownKey(BadNote):
    """No key that was given signed the note."""

    code = "unknown-key"
