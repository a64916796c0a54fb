"""A store of blobs beside a dictionary: whatever is done to it, it holds what that does."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sandkeep.events import BlobStore, batch, packs

from ..packed import stored

_small = st.binary(max_size=12)
# Long enough to be cut, and alike in parts, so that chunks are shared.
_blocks = st.lists(st.integers(0, 3), min_size=3, max_size=6)
_large = st.builds(lambda blocks, tail: b"".join(map(_block, blocks)) + tail, _blocks, _small)
_contents = st.lists(st.one_of(_small, _large), min_size=1, max_size=6)


def _block(seed: int) -> bytes:
    return blake3(bytes([seed])).digest(length=1000)


class Machine(RuleBasedStateMachine):
    """Batches, files and sweeps, and an index that is lost now and then."""

    @initialize()
    def make(self) -> None:
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(batch, "LARGE_BYTES", 2000)
        self.patches.setattr(batch, "CHUNK_BYTES", (64, 256, 1024))
        self.patches.setattr(batch, "FRAME_BYTES", 700)
        self.patches.setattr(packs, "MAX_PACK_BYTES", 20_000)
        self.root = Path(tempfile.mkdtemp())
        self.store = BlobStore(self.root, synced=False)
        self.model: dict[str, bytes] = {}

    @rule(contents=_contents, tree=st.booleans())
    def put(self, contents: list[bytes], tree: bool) -> None:
        with self.store.batch() as made:
            for content in contents:
                self.model[made.put(content, tree=tree)] = content

    @rule(contents=_contents)
    def give_up(self, contents: list[bytes]) -> None:
        made = self.store.batch()
        for content in contents:
            made.put(content)
        made.close()

    @rule(content=_small)
    def put_file(self, content: bytes) -> None:
        self.model[self.store.put(content)] = content

    @rule(data=st.data())
    def sweep(self, data: st.DataObject) -> None:
        kept = data.draw(st.sets(st.sampled_from(sorted(self.model)))) if self.model else set()
        self.store.sweep(kept.__contains__, -1)
        self.model = {digest: self.model[digest] for digest in kept}

    @rule(data=st.data())
    def condemn(self, data: st.DataObject) -> None:
        kept = data.draw(st.sets(st.sampled_from(sorted(self.model)))) if self.model else set()
        self.store.sweep(kept.__contains__, 3600)

    @rule()
    def lose_the_index(self) -> None:
        shutil.rmtree(self.root / "packs" / "index", ignore_errors=True)

    @rule()
    def begin_anew(self) -> None:
        self.store = BlobStore(self.root, synced=False)

    @invariant()
    def all_is_there(self) -> None:
        for digest, content in self.model.items():
            assert digest in self.store
            assert self.store.get(digest) == content
        assert set(self.model) <= set(stored(self.root))
        assert list(self.store.verify()) == []

    def teardown(self) -> None:
        self.patches.undo()
        shutil.rmtree(self.root)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
