"""Documents packed into steps: no padding, no document sees another, and an order that (seed, epoch) alone fixes.

A pack is documents of at most `sequence_length` tokens together. What is computed of a document ends with the token
that predicts its last scored one: what only follows is a target, and is never an input. Documents of one picture are
kept together, some at a time, so that the tower sees it once for all of them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemmary.batch import Batch, Chunk, Pixels
from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.tune.augment import Augment
from gemmary.tune.pictures import Album, Picture
from gemmary.tune.rows import Example

WINDOW = 2048
"""Documents, in shuffled order, that are sorted by length to fill packs: enough to fill them, and few enough that the
packs of two epochs differ."""
TOGETHER = 4
"""Documents of one picture that stay together at most: a quarter of the tower's work for most of what can be saved,
and batches of many pictures still."""

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MicroBatch:
    """What is computed together: a ragged step whose sequences are documents, and what it should predict."""

    batch: Batch
    """`outputs`: the rows that predict a scored token."""
    targets: Int64
    """[R]: the token that follows each of them."""
    pixels: Pixels | None = None
    """The pictures of the documents, each once; None where they have none."""
    shown: Int64 | None = None
    """[pictures of all documents]: which of `pixels` stands in each one's places, in the order of the places."""


class Batches:
    """The micro-batches of a run: (epoch, index) is all that it takes to get one again, here or in another process."""

    notices: tuple[str, ...]
    """What was done to rows that a user should be told."""

    def __init__(
        self,
        examples: Sequence[Example],
        config: Config,
        *,
        batch_size: int,
        sequence_length: int,
        seed: int,
        shuffle: bool = True,
        augment: Augment | None = None,
    ) -> None:
        """batch_size: packs of a micro-batch. seed: 0 to 2**64 - 1. shuffle: False for the same order in every epoch.
        augment: changes the pictures of documents in every epoch.

        Raises GemmaryError where a row whose answer depends on all of it is longer than `sequence_length`; one that is
        scored throughout is cut into documents of that length. Or where the model's context is shorter.
        """
        if sequence_length > config.context_length:
            held = f"{config.context_length:,} tokens of the model's context"
            raise GemmaryError(f"--sequence-length {sequence_length:,} is more than the {held}")
        self.documents = [piece for example in examples for piece in fitted(example, sequence_length)]
        cut = len(self.documents) - len(examples)
        self.notices = (f"texts longer than {sequence_length:,} tokens were cut: {cut:,} more documents",) * (cut > 0)
        self.lengths = [inputs(document) for document in self.documents]
        """Tokens that are computed of each."""
        self.config = config
        self._batch_size = batch_size
        self.sequence_length = sequence_length
        self._seed = seed
        self._shuffle = shuffle
        self._augment = augment
        self._album = Album(config.vision.image_size) if config.vision is not None else None
        self._planned: tuple[int, list[list[int]]] = (-1, [])

    def count(self, epoch: int) -> int:
        """Micro-batches of an epoch; the last may have fewer packs."""
        return -(-len(self.packs(epoch)) // self._batch_size)

    def get(self, epoch: int, index: int) -> MicroBatch:
        """One of `count(epoch)` micro-batches: a function of the arguments and of nothing that went before."""
        return self.share(epoch, index, 0, 1)[0]

    def share(self, epoch: int, index: int, rank: int, size: int) -> tuple[MicroBatch, bool]:
        """The packs of a micro-batch that fall to process `rank` of `size`, and whether they count: where there are
        fewer packs than processes, some get what another has, so that all compute something."""
        packs = self.packs(epoch)[index * self._batch_size : (index + 1) * self._batch_size]
        mine = packs[rank::size] or packs[:1]
        documents = [self._document(i, epoch) for pack in mine for i in pack]
        return micro_batch(self.config, documents, self._album), rank < len(packs)

    def _document(self, index: int, epoch: int) -> Example:
        document = self.documents[index]
        return document if self._augment is None else self._augment.changed(document, epoch, index)

    def packs(self, epoch: int) -> list[list[int]]:
        """The documents of each pack of an epoch, as indices into `documents`; each document once."""
        if epoch != self._planned[0]:
            self._planned = epoch, self._plan(epoch)
        return self._planned[1]

    def _plan(self, epoch: int) -> list[list[int]]:
        # A generator's raw output is the same in every version of numpy; that of its `permutation` need not be.
        random = np.random.Philox(key=np.array([self._seed, epoch], np.uint64))

        def order(count: int) -> list[int]:
            ranks = random.random_raw(count) if self._shuffle else np.arange(count)
            found: list[int] = np.argsort(ranks, kind="stable").tolist()
            return found

        groups = self._together(order(len(self.documents)))
        lengths = [sum(self.lengths[i] for i in group) for group in groups]
        packs: list[list[int]] = []
        for start in range(0, len(groups), WINDOW):
            window = range(start, min(start + WINDOW, len(groups)))
            packs += [
                [i for group in pack for i in groups[group]] for pack in packed(window, lengths, self.sequence_length)
            ]
        return [packs[i] for i in order(len(packs))]  # or else a window's short documents would come last

    def _together(self, documents: Sequence[int]) -> list[list[int]]:
        """The documents in their order, those of one picture as groups that fit into a pack, where the first is."""
        groups: list[list[int]] = []
        open_groups: dict[tuple[Path, ...], tuple[list[int], int]] = {}
        for i in documents:
            seen = tuple(picture.path for picture in self.documents[i].pictures)
            group, length = open_groups.get(seen, ([], 0))
            if not group or len(group) == TOGETHER or length + self.lengths[i] > self.sequence_length:
                group, length = [], 0
                groups.append(group)
            group.append(i)
            if seen:
                open_groups[seen] = group, length + self.lengths[i]
        return groups


def packed(documents: Sequence[int], lengths: Sequence[int], room: int) -> list[list[int]]:
    """Best-fit decreasing: the longest document first, each into the pack that it fills most.

    documents: indices into `lengths`, none of which is above `room`. Never more than 11/9 of the fewest packs, plus 1.
    """
    packs: list[list[int]] = []
    left: list[tuple[int, int]] = []  # (room left, pack), sorted
    for document in sorted(documents, key=lambda i: -lengths[i]):
        at = bisect_left(left, (lengths[document], -1))
        free, pack = left.pop(at) if at < len(left) else (room, len(packs))
        if pack == len(packs):
            packs.append([])
        packs[pack].append(document)
        insort(left, (free - lengths[document], pack))
    return packs


def inputs(example: Example) -> int:
    """Tokens of a document that are computed: those before the last scored one."""
    return int(np.flatnonzero(example.scored)[-1])


def fitted(example: Example, sequence_length: int) -> list[Example]:
    """The document, or its pieces where it is longer and scored throughout.

    Each further piece begins with BOS, which the models cannot do without, and the last token of the piece before, so
    that every token is predicted exactly once. Raises GemmaryError for a document that cannot be cut.
    """
    if inputs(example) <= sequence_length:
        return [example]
    if not example.scored[1:].all():
        told = f"{example.source}: the row has {inputs(example):,} tokens and --sequence-length is {sequence_length:,}"
        raise GemmaryError(f"{told}: raise it, or shorten the row")
    bos, first = example.tokens[:1], example.tokens[: sequence_length + 1]
    pieces = [replace(example, tokens=first, scored=example.scored[: len(first)])]
    for start in range(len(first) - 1, len(example.tokens) - 1, sequence_length - 1):
        tokens = np.concatenate([bos, example.tokens[start : start + sequence_length]])
        source = f"{example.source}, piece {len(pieces) + 1}"
        pieces.append(Example(tokens, np.arange(len(tokens)) > 1, source))
    return pieces


def micro_batch(config: Config, documents: Sequence[Example], album: Album | None = None) -> MicroBatch:
    """One ragged step over whole documents, of R scored tokens. album: where their pictures come from; None: without
    pixels, to look at."""
    lengths = [inputs(each) for each in documents]
    chunks = [
        Chunk(each.tokens[:length].tolist(), prefix=each.prefix, outputs="none", pictures=_unseen(config, each))
        for each, length in zip(documents, lengths, strict=True)
    ]
    outputs: list[Int64] = []
    targets: list[npt.NDArray[np.int32]] = []
    for each, begin in zip(documents, accumulate(lengths, initial=0), strict=False):
        scored = np.flatnonzero(each.scored)
        outputs.append(begin + scored - 1)
        targets.append(each.tokens[scored])
    batch = replace(Batch.of(config, chunks), outputs=np.concatenate(outputs).astype(np.int32))
    made = MicroBatch(batch, np.concatenate(targets).astype(np.int64))
    pictures = [picture for each in documents for picture in each.pictures]
    if album is None or not pictures:
        return made
    places: dict[Picture, int] = {}
    shown = np.array([places.setdefault(picture, len(places)) for picture in pictures], np.int64)
    return replace(made, pixels=album.pixels(list(places)), shown=shown)


def _unseen(config: Config, example: Example) -> npt.NDArray[np.float32] | None:
    """What stands in the places of an example's pictures: nothing yet, the tower runs in the step itself."""
    if config.vision is None or not example.pictures:
        return None
    return np.empty((config.vision.num_tokens * len(example.pictures), 0), np.float32)
