"""The tree against the vectors of Certificate Transparency, and against RFC 9162 read word for word."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import merkle
from sandkeep.events.merkle import EMPTY_ROOT, Peaks, Tree, leaf_hash, verify_consistency, verify_inclusion

# google/certificate-transparency, merkletree/merkle_tree_test.cc: the eight leaves, the root of each size, and paths.
LEAVES = [
    bytes.fromhex(each)
    for each in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
A = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
B = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
C = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
D = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
E = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
F = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
INCLUSION = [
    (0, 1, []),
    (0, 8, [A, B, C]),
    (5, 8, [D, E, ROOTS[4]]),
    (2, 3, [ROOTS[2]]),
    (1, 5, [ROOTS[1], B, D]),
]
CONSISTENCY = [(1, 1, []), (1, 8, [A, B, C]), (6, 8, [F, E, ROOTS[4]]), (2, 5, [B, D])]


def root_of(hashes: list[bytes]) -> bytes:
    """MTH of RFC 9162 section 2.1.1, over leaf hashes."""
    if not hashes:
        return hashlib.sha256().digest()
    if len(hashes) == 1:
        return hashes[0]
    k = max(1 << i for i in range(32) if 1 << i < len(hashes))
    return hashlib.sha256(b"\x01" + root_of(hashes[:k]) + root_of(hashes[k:])).digest()


def path_of(m: int, hashes: list[bytes]) -> list[bytes]:
    """PATH of RFC 9162 section 2.1.3.1."""
    if len(hashes) == 1:
        return []
    k = max(1 << i for i in range(32) if 1 << i < len(hashes))
    if m < k:
        return [*path_of(m, hashes[:k]), root_of(hashes[k:])]
    return [*path_of(m - k, hashes[k:]), root_of(hashes[:k])]


def subproof_of(m: int, hashes: list[bytes], whole: bool = True) -> list[bytes]:
    """SUBPROOF of RFC 9162 section 2.1.4.1."""
    if m == len(hashes):
        return [] if whole else [root_of(hashes)]
    k = max(1 << i for i in range(32) if 1 << i < len(hashes))
    if m <= k:
        return [*subproof_of(m, hashes[:k], whole), root_of(hashes[k:])]
    return [*subproof_of(m - k, hashes[k:], False), root_of(hashes[:k])]


def tree_of(hashes: list[bytes]) -> Tree:
    tree = Tree()
    for each in hashes:
        tree.append(each)
    return tree


def some(count: int) -> list[bytes]:
    return [leaf_hash(b"%d" % i) for i in range(count)]


def test_the_roots_of_the_reference_leaves() -> None:
    peaks, tree = Peaks(), Tree()
    assert peaks.root().hex() == tree.root(0).hex() == EMPTY_ROOT.hex() == ROOTS[0]
    for size, leaf in enumerate(LEAVES, 1):
        peaks.append(leaf_hash(leaf))
        tree.append(leaf_hash(leaf))
        assert (peaks.size, tree.size) == (size, size)
        assert peaks.root().hex() == tree.root(size).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size", "proof"), INCLUSION)
def test_the_inclusion_proofs_of_the_reference_leaves(index: int, size: int, proof: list[str]) -> None:
    found = tree_of([leaf_hash(leaf) for leaf in LEAVES]).inclusion(index, size)
    assert [each.hex() for each in found] == proof
    assert verify_inclusion(leaf_hash(LEAVES[index]), index, size, found, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("old", "new", "proof"), CONSISTENCY)
def test_the_consistency_proofs_of_the_reference_leaves(old: int, new: int, proof: list[str]) -> None:
    found = tree_of([leaf_hash(leaf) for leaf in LEAVES]).consistency(old, new)
    assert [each.hex() for each in found] == proof
    assert verify_consistency(old, new, found, bytes.fromhex(ROOTS[old]), bytes.fromhex(ROOTS[new]))


def test_every_proof_of_every_small_tree_is_that_of_the_rfc_and_verifies() -> None:
    hashes = some(33)
    tree = tree_of(hashes)
    roots = [root_of(hashes[:size]) for size in range(34)]
    for size in range(1, 34):
        assert tree.root(size) == roots[size]
        for index in range(size):
            proof = tree.inclusion(index, size)
            assert proof == path_of(index, hashes[:size])
            assert verify_inclusion(hashes[index], index, size, proof, roots[size])
        for old in range(size + 1):
            proof = tree.consistency(old, size)
            assert proof == (subproof_of(old, hashes[:size]) if old else [])
            assert verify_consistency(old, size, proof, roots[old], roots[size])


def test_no_inclusion_proof_holds_for_another_place_size_or_leaf() -> None:
    hashes = some(20)
    tree = tree_of(hashes)
    for index in range(20):
        proof = tree.inclusion(index, 20)
        for other in range(-1, 23):
            for size in range(-1, 23):
                holds = verify_inclusion(hashes[index], other, size, proof, tree.root(20))
                # Such a proof fits several sizes: what binds the size is the signed note.
                assert holds <= (other == index or size != 20)
        assert not verify_inclusion(hashes[index - 1], index, 20, proof, tree.root(20))


@given(st.lists(st.binary(max_size=4), max_size=70))
def test_peaks_go_on_where_they_were_left(leaves: list[bytes]) -> None:
    peaks, hashes = Peaks(), [leaf_hash(leaf) for leaf in leaves]
    for size, leaf in enumerate(hashes):
        assert peaks.root() == root_of(hashes[:size])
        assert len(peaks.hashes) == size.bit_count()
        peaks = Peaks(peaks.size, peaks.hashes)
        peaks.append(leaf)
    assert peaks.root() == root_of(hashes) == tree_of(hashes).root(len(hashes))


@given(st.data())
def test_a_changed_proof_never_holds(data: st.DataObject) -> None:
    hashes = some(data.draw(st.integers(2, 100)))
    tree, size = tree_of(hashes), len(hashes)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    inclusion, consistency = tree.inclusion(index, size), tree.consistency(old, size)
    for proof in (inclusion, consistency):
        changed = data.draw(mutations(proof))
        if changed == proof:
            continue
        if proof is inclusion:
            assert not verify_inclusion(hashes[index], index, size, changed, tree.root(size))
        else:
            assert not verify_consistency(old, size, changed, tree.root(old), tree.root(size))


@st.composite
def mutations(draw: st.DrawFn, proof: list[bytes]) -> list[bytes]:
    """A proof with a bit flipped, a hash dropped, doubled or added, or two swapped."""
    changed = list(proof)
    at = draw(st.integers(0, max(0, len(proof) - 1)))
    match draw(st.sampled_from(["flip", "drop", "double", "add", "swap", "shorten"])) if proof else "add":
        case "flip":
            bit = draw(st.integers(0, 255))
            changed[at] = (int.from_bytes(proof[at]) ^ 1 << bit).to_bytes(32)
        case "drop":
            del changed[at]
        case "double":
            changed.insert(at, changed[at])
        case "swap":
            changed[0], changed[at] = changed[at], changed[0]
        case "shorten":
            changed[at] = changed[at][:31]
        case _:
            changed.append(bytes(32))
    return changed


HASHES = st.lists(st.binary(max_size=33) | st.just(EMPTY_ROOT), max_size=70)
SIZES = st.integers(-(2**70), 2**70) | st.integers(-2, 9)


@given(SIZES, SIZES, HASHES, st.just(EMPTY_ROOT), st.binary(min_size=32, max_size=32))
def test_nonsense_is_refused_and_never_raises(a: int, b: int, proof: list[bytes], root: bytes, leaf: bytes) -> None:
    assert not verify_inclusion(leaf, a, b, proof, root)
    assert not verify_consistency(a, b, proof, root, leaf) or (a == 0 and b > 0 and not proof)


def test_sizes_that_a_tree_never_had_are_refused() -> None:
    tree = tree_of(some(4))
    for ask in (
        lambda: tree.root(5),
        lambda: tree.root(-1),
        lambda: tree.inclusion(4, 4),
        lambda: tree.inclusion(0, 0),
        lambda: tree.inclusion(0, 5),
        lambda: tree.consistency(4, 3),
        lambda: tree.consistency(-1, 3),
        lambda: tree.consistency(2, 5),
    ):
        with pytest.raises(ValueError, match="is not between"):
            ask()
    for size, hashes in ((1, []), (2, [EMPTY_ROOT] * 2), (-1, []), (1, [b"short"])):
        with pytest.raises(ValueError, match="has not these"):
            Peaks(size, hashes)


def test_a_leaf_is_never_taken_for_a_node() -> None:
    left, right = some(2)
    assert leaf_hash(left + right) != merkle.node_hash(left, right)
