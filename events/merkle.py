"""Merkle trees as transparency logs have them: RFC 6962 section 2.1 and RFC 9162 section 2.1, with SHA-256.

The hash of a leaf is SHA-256(0x00, data) and that of a node SHA-256(0x01, left, right), so that no leaf passes for a
node. A tree of n leaves splits at the largest power of two below n; the root of none is SHA-256 of nothing.

    Peaks   append leaves and get the root, holding O(log n) hashes
    Tree    every hash of a tree, 64 bytes a leaf, for proofs about any of its sizes

The two `verify_` functions take proofs from anybody: whatever is given they return whether it holds, in O(log n), and
they need nothing but `hashlib`. Everything here is pure; a `Peaks` or `Tree` is for one thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import final

HASH_BYTES = 32

EMPTY_ROOT = hashlib.sha256().digest()
"""The root of the tree without leaves."""

_sha256 = hashlib.sha256


def leaf_hash(data: bytes) -> bytes:
    """The hash of the leaf that holds `data`."""
    return _sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of the node above `left` and `right`."""
    return _sha256(b"\x01" + left + right).digest()


@final
class Peaks:
    """A tree that is only ever appended to: the roots of its perfect subtrees, from left to right (a compact range)."""

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        """Take up a tree of `size` leaves where another left it. Raises `ValueError` if it cannot have such hashes."""
        self.size = size
        self._hashes = list(hashes)
        if size < 0 or len(self._hashes) != size.bit_count() or not _are_hashes(self._hashes):
            raise ValueError(f"a tree of {size} leaves has not these {len(self._hashes)} peaks")

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """What there is to keep of the tree, besides its size."""
        return tuple(self._hashes)

    def append(self, leaf: bytes) -> None:
        """Add the leaf with this hash."""
        hashes, full = self._hashes, self.size
        while full & 1:
            leaf = node_hash(hashes.pop(), leaf)
            full >>= 1
        hashes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The root of the tree as it is now."""
        if not self._hashes:
            return EMPTY_ROOT
        root = self._hashes[-1]
        for left in reversed(self._hashes[:-1]):
            root = node_hash(left, root)
        return root


@final
class Tree:
    """All hashes of a tree, from which proofs about any of the sizes it has had are taken."""

    def __init__(self) -> None:
        # One byte string for each level: a list of hashes would take three times as much.
        self._levels = [bytearray()]

    @property
    def size(self) -> int:
        """The number of leaves."""
        return len(self._levels[0]) // HASH_BYTES

    def append(self, leaf: bytes) -> None:
        """Add the leaf with this hash."""
        level = 0
        while True:
            if level == len(self._levels):
                self._levels.append(bytearray())
            hashes = self._levels[level]
            hashes += leaf
            if len(hashes) // HASH_BYTES % 2:
                return
            leaf = _sha256(b"\x01" + hashes[-2 * HASH_BYTES :]).digest()
            level += 1

    def root(self, size: int) -> bytes:
        """The root when there were `size` leaves."""
        self._check(0, size, self.size)
        return self._hash(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """The proof that leaf `index`, from 0, is in the tree of `size` leaves (RFC 9162 section 2.1.3.1)."""
        self._check(0, index, size - 1)
        self._check(1, size, self.size)
        proof = []
        low, high = 0, size
        while high - low > 1:
            middle = low + _split(high - low)
            if index < middle:
                proof.append(self._hash(middle, high))
                high = middle
            else:
                proof.append(self._hash(low, middle))
                low = middle
        return proof[::-1]

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the tree of `new` leaves begins with that of `old` (RFC 9162 section 2.1.4.1)."""
        self._check(0, old, new)
        self._check(old, new, self.size)
        if old in (0, new):
            return []
        proof = []
        low, high, whole = 0, new, True
        while old != high:
            middle = low + _split(high - low)
            if old <= middle:
                proof.append(self._hash(middle, high))
                high = middle
            else:
                proof.append(self._hash(low, middle))
                low, whole = middle, False
        if not whole:
            proof.append(self._hash(low, high))
        return proof[::-1]

    def _hash(self, low: int, high: int) -> bytes:
        """The hash above the leaves from `low` to before `high`; `low` is a multiple of the split."""
        count = high - low
        if count & (count - 1) == 0:
            at = low // count * HASH_BYTES
            return bytes(self._levels[count.bit_length() - 1][at : at + HASH_BYTES])
        middle = low + _split(count)
        return node_hash(self._hash(low, middle), self._hash(middle, high))

    @staticmethod
    def _check(least: int, value: int, most: int) -> None:
        if not least <= value <= most:
            raise ValueError(f"{value} is not between {least} and {most}")


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` shows that the leaf hash `leaf` is at `index` of the tree of `size` leaves with this root.

    RFC 9162 section 2.1.3.2.
    """
    if not 0 <= index < size or not _are_hashes((leaf, root, *proof)):
        return False
    at, last, found = index, size - 1, leaf
    for each in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = node_hash(each, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, each)
        at, last = at >> 1, last >> 1
    return last == 0 and found == root


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Whether `proof` shows that the tree of `new` leaves begins with that of `old` leaves.

    RFC 9162 section 2.1.4.2. Every tree begins with the empty one, which needs no proof.
    """
    if not 0 <= old <= new or not _are_hashes((old_root, new_root, *proof)):
        return False
    if old == 0:
        return not proof and old_root == EMPTY_ROOT and (new > 0 or new_root == EMPTY_ROOT)
    if old == new:
        return not proof and old_root == new_root
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        return False
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    found_old = found_new = path[0]
    for each in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            found_old, found_new = node_hash(each, found_old), node_hash(each, found_new)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found_new = node_hash(found_new, each)
        at, last = at >> 1, last >> 1
    return last == 0 and found_old == old_root and found_new == new_root


def _split(count: int) -> int:
    """The largest power of two below `count`, which is at least 2."""
    return 1 << ((count - 1).bit_length() - 1)


def _are_hashes(found: Iterable[bytes]) -> bool:
    return all(len(each) == HASH_BYTES for each in found)
