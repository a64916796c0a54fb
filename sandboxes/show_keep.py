"""What the command line shows people of a keep as a whole."""

from __future__ import annotations

from collections.abc import Mapping

from sandkeep.events.audit import AuditReport
from sandkeep.events.recovery import Recovery
from sandkeep.sandboxes import documents_keep
from sandkeep.sandboxes.audit import Exported
from sandkeep.sandboxes.render import plain
from sandkeep.sandboxes.verification import KeepReport


def made(done: documents_keep.MadeKeep, asked: Mapping[str, object]) -> None:
    """Where a new keep is."""
    print(f"made a keep in {done.keep}")


def examined(found: documents_keep.Examined, asked: Mapping[str, object]) -> None:
    """A line for each finding, with a mark for what has to be done."""
    for finding in found.findings:
        mark = "✗" if finding.act else "·" if finding.advice else "✓"
        advice = f": {finding.advice}" if finding.advice else ""
        print(f"{mark} {finding.area:9}  {plain(finding.what + advice)}")


def did(done: documents_keep.Did, asked: Mapping[str, object]) -> None:
    """Something that the steward did, at once."""
    print(plain(done.did), flush=True)


def verified(report: KeepReport, asked: Mapping[str, object]) -> None:
    """What is damaged, a line each, and how much is not."""
    for line in report.damage:
        print(plain(f"damaged: {line}"))
    verdict = "all is as it was" if report.ok else "DAMAGED"
    notes = f"{report.notes} published notes"
    print(f"{verdict}: {report.events} events up to position {report.head}, {notes}, {report.blobs} blobs")


def recovered(done: Recovery, asked: Mapping[str, object]) -> None:
    """What was damaged and lost, a line each, and where the log ends now."""
    for line in done.damage:
        print(plain(f"damaged: {line}"))
    for what, ranges in (("lost", done.lost), ("salvaged", done.salvaged)):
        for span in ranges:
            print(f"{what}: positions {span.first} to {span.last}")
    did = f"recovered from {done.source}; what was there is in {done.quarantine}" if done.recovered else "all is well"
    print(f"{did}: the log ends at position {done.head}")


def replayed(done: documents_keep.Replayed, asked: Mapping[str, object]) -> None:
    """Whether a replay came to what was stored."""
    verdict = "the same as before" if done.ok else f"NOT the {done.before} of before"
    print(f"replayed {done.events} events: digest {done.digest}, {verdict}")


def key(found: documents_keep.Key, asked: Mapping[str, object]) -> None:
    """A key, as it is handed out."""
    print(found.key)


def note(found: documents_keep.Note, asked: Mapping[str, object]) -> None:
    """A note, as it is kept."""
    print(found.note, end="")


def exported(done: Exported, asked: Mapping[str, object]) -> None:
    """What a bundle holds."""
    print(f"wrote {done.records} records and {done.blobs or 0} blobs, {done.bytes} bytes, to {done.file}")


def judged(report: AuditReport, asked: Mapping[str, object]) -> None:
    """What of a bundle does not hold, a line each, and what it is that does."""
    for problem in report.problems:
        print(plain(f"problem: {' '.join(problem.message.split())} [{problem.code}]"))
    if report.found > len(report.problems):
        print(f"problem: {report.found - len(report.problems)} more")
    verdict = "all holds" if report.ok else "DOES NOT HOLD"
    what = "all of the log" if report.stream is None else report.stream
    content = "content left out" if report.blobs is None else f"{report.blobs} blobs"
    line = (
        f"{verdict}: {report.records} records of {what}, positions {report.first} to {report.last} of {report.size},"
        f" {report.notes} notes, {content}"
    )
    print(plain(line))
