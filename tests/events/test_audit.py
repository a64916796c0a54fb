"""Every way to tamper with a bundle, done for real."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sandkeep.events import BlobDamaged, Event, audit, bundle, codec, schema
from sandkeep.events import catalogue as ev
from sandkeep.events.audit import AuditReport
from sandkeep.events.bundle import Blob, Data, End, Entry, Header, Leaf, Note, Tree
from sandkeep.events.catalogue import Reference
from sandkeep.events.errors import BundleDamaged, NotABundle, SandkeepError
from sandkeep.events.merkle import Tree as MerkleTree
from sandkeep.events.merkle import leaf_hash
from sandkeep.events.note import Checkpoint, Signer

SIGNER = Signer("sandkeep/test", Ed25519PrivateKey.from_private_bytes(bytes(32)))
OUTPUT = b"a long output" * 2000
FILE = b"a file"
MANIFEST = blake3(FILE).hexdigest().encode()
"""In these tests a manifest is just the digest of the one file in it."""


def manifests(digest: str, data: bytes) -> Iterable[Reference]:
    if len(data) != 64:
        raise BlobDamaged(f"{digest} is no manifest")
    return [Reference(data.decode(), len(FILE))]


class History(NamedTuple):
    leaves: list[bytes]
    tree: MerkleTree

    def note(self, size: int, signer: Signer = SIGNER) -> bytes:
        return signer.sign(Checkpoint(signer.key.name, size, self.tree.root(size)).text)


def history(summaries: str = "abcdefghi") -> History:
    """Nine records in two streams; two of them vouch for content."""
    events: list[Event] = [ev.TaskCompleted(each) for each in summaries]
    output = ev.Output(len(OUTPUT), blob=blake3(OUTPUT).hexdigest())
    events[2] = ev.CommandExecuted("i", 0, 1, False, output, ev.Output(0, b""))
    events[5] = ev.CheckpointCreated("c", blake3(MANIFEST).hexdigest(), 1, 6, "")
    leaves, revisions = [], {"task/a": 0, "task/b": 0}
    for position, event in enumerate(events, 1):
        stream = "task/a" if position % 3 else "task/b"
        revisions[stream] += 1
        name, version, body = schema.encode(event)
        record = codec.Record(
            position, stream, revisions[stream], 0, "me", None, None, name, version, msgspec.Raw(body)
        )
        leaves.append(msgspec.msgpack.encode(record))
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf_hash(leaf))
    return History(leaves, tree)


HISTORY = history()
FORK = history("abcdefgXi")
SIZE = len(HISTORY.leaves)


def notes(made: History = HISTORY, sizes: tuple[int, ...] = (2, 5, SIZE)) -> list[Entry]:
    return [
        Note(made.note(size), tuple(made.tree.consistency(before, size)))
        for before, size in zip((0, *sizes), sizes, strict=False)
    ]


def leaves(made: History = HISTORY, positions: Iterable[int] = range(1, SIZE + 1), proofs: bool = False) -> list[Entry]:
    return [Leaf(made.leaves[at - 1], tuple(made.tree.inclusion(at - 1, SIZE)) if proofs else ()) for at in positions]


def blob(kind: type[Tree] | type[Blob], content: bytes, digest: str | None = None) -> list[Entry]:
    return [kind(digest or blake3(content).hexdigest()), *bundle.pack([content])]


CONTENT = [*blob(Tree, MANIFEST), *blob(Blob, OUTPUT), *blob(Blob, FILE)]
FULL: list[Entry] = [Header(1, SIZE, None, True), *notes(), *leaves(), *CONTENT, End()]
RANGE: list[Entry] = [Header(3, 7, None, True), *notes(), *leaves(positions=range(3, 8), proofs=True), *CONTENT, End()]
TASK: list[Entry] = [
    Header(1, SIZE, "task/b", True),
    *notes(),
    *leaves(positions=(3, 6, 9), proofs=True),
    *CONTENT,
    End(),
]
PLAIN: list[Entry] = [Header(1, SIZE, None, False), *notes(), *leaves(), End()]
BUNDLES = {"full": FULL, "range": RANGE, "task": TASK, "plain": PLAIN}


def packed(entries: Iterable[Entry]) -> bytes:
    file = io.BytesIO()
    bundle.write(file, entries)
    return file.getvalue()


def judge(entries: Iterable[Entry] | bytes, seen: Iterable[bytes] = (), signer: Signer = SIGNER) -> AuditReport:
    data = entries if isinstance(entries, bytes) else packed(entries)
    return audit.verify(io.BytesIO(data), signer.key, manifests, list(seen))


def codes(*arguments: object, **named: object) -> set[str]:
    report = judge(*arguments, **named)  # type: ignore[arg-type]
    assert report.ok == (not report.problems)
    return {problem.code for problem in report.problems}


def swapped(entries: list[Entry], old: Entry, new: Entry | None) -> list[Entry]:
    assert old in entries
    return [each if each != old else new for each in entries if each != old or new is not None]  # type: ignore[misc]


def record(entries: list[Entry], nth: int) -> Leaf:
    return [each for each in entries if isinstance(each, Leaf)][nth]


@pytest.mark.parametrize("name", BUNDLES)
def test_a_whole_bundle_holds(name: str) -> None:
    report = judge(BUNDLES[name], seen=[HISTORY.note(5)])
    assert report.problems == ()
    assert (report.ok, report.notes, report.size, report.root) == (True, 3, SIZE, HISTORY.tree.root(SIZE).hex())
    assert (report.records, report.blobs) == {
        "full": (9, 3),
        "range": (5, 3),
        "task": (3, 3),
        "plain": (9, None),
    }[name]


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize("nth", [0, 1, 2])
def test_a_changed_record_is_found(name: str, nth: int) -> None:
    entries = BUNDLES[name]
    old = record(entries, nth)
    found = codec.decode_record(old.record)
    forged = msgspec.structs.replace(found, actor="you")
    new = Leaf(msgspec.msgpack.encode(forged), old.proof)
    assert "changed-record" in codes(swapped(entries, old, new))


@pytest.mark.parametrize("name", BUNDLES)
def test_a_removed_record_is_found(name: str) -> None:
    entries = BUNDLES[name]
    last = record(entries, -1)
    for nth in range(len([each for each in entries if isinstance(each, Leaf)])):
        removed = record(entries, nth)
        found = codes(swapped(entries, removed, None))
        if name == "task" and removed == last:
            assert not found & {"changed-record", "out-of-order"}  # what no bundle of one stream can show
        else:
            assert found & {"out-of-order", "cut-short"}


@pytest.mark.parametrize("name", BUNDLES)
def test_an_inserted_record_is_found(name: str) -> None:
    entries = BUNDLES[name]
    one = record(entries, 1)
    at = entries.index(one)
    stranger = Leaf(FORK.leaves[7], one.proof)
    assert codes([*entries[:at], stranger, *entries[at:]]) & {"out-of-order", "changed-record"}
    assert "out-of-order" in codes([*entries[:at], one, *entries[at:]])
    longer = msgspec.structs.replace(codec.decode_record(HISTORY.leaves[-1]), position=SIZE + 1, revision=4)
    end = entries.index(record(entries, -1)) + 1
    assert "out-of-order" in codes([*entries[:end], Leaf(msgspec.msgpack.encode(longer), ()), *entries[end:]])


@pytest.mark.parametrize("name", BUNDLES)
def test_reordered_records_are_found(name: str) -> None:
    entries = list(BUNDLES[name])
    a, b = entries.index(record(entries, 0)), entries.index(record(entries, 1))
    entries[a], entries[b] = entries[b], entries[a]
    assert "out-of-order" in codes(entries)


def test_a_cut_tail_is_found() -> None:
    assert "cut-short" in codes([*FULL[:1], *notes(), *leaves(positions=range(1, 6)), End()])
    # A bundle that says it holds less is a range, whose records need proofs of their own.
    assert "changed-record" in codes([Header(1, 5, None, False), *notes(), *leaves(positions=range(1, 6)), End()])
    # An older bundle is whole; only a note kept from before shows that it is not the newest.
    older: list[Entry] = [Header(1, 5, None, False), *notes(sizes=(2, 5)), *leaves(positions=range(1, 6)), End()]
    assert codes(older) == set()
    assert codes(older, seen=[HISTORY.note(SIZE)]) == {"cut-short"}
    assert "cut-short" in codes([Header(1, SIZE, "task/b", False), *notes(), End()])
    for header in (Header(1, SIZE + 1, None, False), Header(5, 4, None, False)):
        assert "cut-short" in codes([header, *notes(), *leaves(), End()])


def test_a_forked_history_is_found() -> None:
    # The key's holder rewrites position 8 and signs anew: each bundle is whole, but not beside a note of the other.
    forked: list[Entry] = [Header(1, SIZE, None, False), *notes(FORK), *leaves(FORK), End()]
    assert codes(forked) == set()
    assert codes(forked, seen=[HISTORY.note(5)]) == set()
    assert codes(forked, seen=[HISTORY.note(SIZE)]) == {"forked-history"}
    assert codes(forked, seen=[HISTORY.note(8)]) == {"changed-record"}  # no note of the bundle is for 8
    assert codes(RANGE, seen=[HISTORY.note(8)]) == {"forked-history"}
    # Notes of both histories in one bundle.
    mixed = Note(FORK.note(8), tuple(FORK.tree.consistency(5, 8)))
    last = Note(HISTORY.note(SIZE), tuple(HISTORY.tree.consistency(8, SIZE)))
    assert "forked-history" in codes([FULL[0], *notes(sizes=(2, 5)), mixed, last, *leaves(), *CONTENT, End()])
    assert "forked-history" in codes([FULL[0], *notes(), Note(FORK.note(SIZE), ()), *leaves(), *CONTENT, End()])
    for entries in (FULL, RANGE):
        for each in notes()[1:]:
            assert isinstance(each, Note)
            assert "forked-history" in codes(swapped(entries, each, Note(each.note, ())))


def test_notes_out_of_order_are_found() -> None:
    one, two, three = notes()
    assert "bundle-damaged" in codes([FULL[0], two, one, three, *leaves(), *CONTENT, End()])


def test_a_replaced_blob_is_found() -> None:
    for kind, content in ((Tree, MANIFEST), (Blob, OUTPUT), (Blob, FILE)):
        digest = blake3(content).hexdigest()
        at = FULL.index(kind(digest))
        end = FULL.index(Data(b""), at)
        for other in (content[::-1], b"", content + b"more", content[:-1]):
            changed = [*FULL[:at], *blob(kind, other, digest), *FULL[end + 1 :]]
            assert "replaced-blob" in codes(changed)
        for pieces in ([b"no zstd"], [], [*piece_of(content), b"more"], [*piece_of(content), *piece_of(b"")]):
            data = [Data(piece) for piece in pieces]
            assert "replaced-blob" in codes([*FULL[: at + 1], *data, *FULL[end:]])
        assert "missing-blob" in codes([*FULL[:at], *FULL[end + 1 :]])
        assert "bundle-damaged" in codes([*FULL[:end], *FULL[end : end + 1], *FULL[at : end + 1], *FULL[end + 1 :]])


def piece_of(content: bytes) -> list[bytes]:
    return [each.data for each in bundle.pack([content]) if each.data]


def test_content_that_nothing_refers_to_is_found() -> None:
    assert codes([*FULL[:-1], *blob(Blob, b"stranger"), End()]) == {"unknown-blob"}
    at = FULL.index(CONTENT[0])
    assert codes([*FULL[:at], *blob(Tree, b"stranger"), *FULL[at:]]) == {"unknown-blob"}
    assert codes([*PLAIN[:-1], *blob(Blob, OUTPUT), End()]) == {"unknown-blob"}


def test_a_bomb_is_not_unpacked() -> None:
    digest = blake3(OUTPUT).hexdigest()
    at = FULL.index(Blob(digest))
    end = FULL.index(Data(b""), at)
    bomb = list(bundle.pack(bytes(1 << 20) for _ in range(64)))
    assert sum(len(each.data) for each in bomb) < 64 << 10
    assert codes([*FULL[: at + 1], *bomb, *FULL[end + 1 :]]) == {"replaced-blob"}
    given = bundle.unpack(iter(bomb), digest, 3 << 20)
    assert sum(len(next(given)) for _ in range(3)) <= 3 << 20
    with pytest.raises(BlobDamaged):
        list(given)


def test_another_key_verifies_nothing() -> None:
    other = Signer("sandkeep/test", Ed25519PrivateKey.generate())
    stranger = Signer("sandkeep/other", Ed25519PrivateKey.generate())
    for signer in (other, stranger):
        assert codes(FULL, signer=signer) == {"wrong-key"}
        resigned = swapped(FULL, FULL[3], Note(HISTORY.note(SIZE, signer), FULL[3].proof))  # type: ignore[union-attr]
        assert "wrong-key" in codes(resigned)
    assert "wrong-key" in codes(FULL, seen=[HISTORY.note(5, other)])


def test_a_checkpoint_of_another_log_is_found() -> None:
    text = Checkpoint("sandkeep/other", SIZE, HISTORY.tree.root(SIZE)).text
    assert "bad-note" in codes([FULL[0], Note(SIGNER.sign(text), ()), *leaves(), *CONTENT, End()])


def test_a_bundle_without_notes_vouches_for_nothing() -> None:
    assert codes([FULL[0], *leaves(), *CONTENT, End()]) == {"bad-note"}
    assert codes([FULL[0], Note(b"no note", ()), End()]) == {"bad-note"}


@pytest.mark.parametrize("leaf", [b"", b"\xc1", b"\x91" * 100_000, b"\x9a\x01\xa1\xff"])
def test_what_is_no_record_is_found(leaf: bytes) -> None:
    assert "bad-record" in codes([FULL[0], *notes(), Leaf(leaf, ()), End()])


def test_a_signed_record_whose_body_does_not_fit_its_type_is_found() -> None:
    for body in (b"\x80", b"\x81\xa7summary\xa1\xff", b"\x91" * 5000):
        record = codec.Record(1, "keep", 1, 0, "me", None, None, "TaskCompleted", 1, msgspec.Raw(b"\xc0"))
        leaf = msgspec.msgpack.encode(record)[:-1] + body
        made = History([leaf], MerkleTree())
        made.tree.append(leaf_hash(leaf))
        found = codes([Header(1, 1, None, True), Note(made.note(1), ()), Leaf(leaf, ()), End()])
        assert found & {"bad-event", "bad-record", "log-damaged"}


@pytest.mark.parametrize(
    "data", [b"", b"sandkeep", bundle.MAGIC, b"x" + packed(FULL), packed(FULL[1:]), packed([End()])]
)
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(NotABundle):
        judge(data)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_cut_anywhere_is_found(name: str) -> None:
    data = packed(BUNDLES[name])
    header = len(packed(BUNDLES[name][:1]))
    for length in range(header, len(data), 7):
        assert "bundle-damaged" in codes(data[:length])
    assert codes(data + b"\0") == {"bundle-damaged"}


@pytest.mark.parametrize(
    "entries",
    [
        [*FULL[:-1], FULL[0], End()],
        [*PLAIN[:-1], PLAIN[1], End()],
        [*FULL[:-1], Data(b"x"), Data(b""), End()],
        [*FULL[:-1], Blob("0" * 64), End()],
        [*FULL[:-1], FULL[-2], End()],
    ],
)
def test_entries_where_they_do_not_belong_are_found(entries: list[Entry]) -> None:
    assert "bundle-damaged" in codes(entries)


@pytest.mark.parametrize(
    "entry",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x00",
        len(deep := b"\x91" * 100_000).to_bytes(4) + deep,
        len(new := msgspec.msgpack.encode(["future", 1])).to_bytes(4) + new,
        len(more := msgspec.msgpack.encode(["end", 1])).to_bytes(4) + more,
        len(path := msgspec.msgpack.encode(["blob", "../../etc/passwd"])).to_bytes(4) + path,
        len(short := msgspec.msgpack.encode(["record", b"", [b"short"]])).to_bytes(4) + short,
    ],
)
def test_what_is_no_entry_is_refused_before_it_is_allocated(entry: bytes) -> None:
    entries = bundle.read(io.BytesIO(packed(FULL[:1]) + entry))
    next(entries)
    with pytest.raises(BundleDamaged):
        next(entries)


def test_many_problems_are_listed_in_part_and_counted_whole() -> None:
    many: list[Entry] = [Leaf(b"\xc1", ())] * (audit.MAX_PROBLEMS + 20)
    report = judge([FULL[0], *notes(), *many, End()])
    assert len(report.problems) == audit.MAX_PROBLEMS
    assert report.found > audit.MAX_PROBLEMS + 20


def said(data: bytes) -> list[object]:
    """All that a bundle says to whoever relies on it."""
    return list(_said(bundle.read(io.BytesIO(data))))


def _said(entries: Iterator[Entry]) -> Iterator[object]:
    for entry in entries:
        match entry:
            case Header():
                yield entry.first, entry.last, entry.stream
            case Note():
                yield entry.note
            case Leaf():
                yield entry.record
            case Tree() | Blob():
                yield type(entry), entry.digest, b"".join(bundle.unpack(entries, entry.digest, 1 << 20))


@settings(max_examples=600)
@given(st.sampled_from(sorted(BUNDLES)), st.data())
def test_a_flipped_byte_is_found_or_harmless(name: str, data: st.DataObject) -> None:
    good = packed(BUNDLES[name])
    bad = bytearray(good)
    bad[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        report = judge(bytes(bad))
    except NotABundle:
        return
    if report.ok:
        assert said(bytes(bad)) == said(good)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 9))
def test_nonsense_behind_a_good_beginning_never_raises_anything_else(nonsense: bytes, keep: int) -> None:
    try:
        assert not judge(packed(FULL[:keep]) + nonsense).ok
    except SandkeepError as error:
        assert isinstance(error, NotABundle)  # noqa: PT017
