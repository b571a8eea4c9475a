"""Documents -> padded batches for the two models, bucketed by length, from a position that can be saved."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tunediff import randomness
from tunediff.text.rows import TextError

Item = TypeVar("Item")


class Document(NamedTuple):
    """One sequence for a forward pass; a long row gives several.

    ids       token ids for each tokenizer (one list when both models read the same ids)
    places    for each tokenizer, the positions of the kept tokens; aligned, so all of one length
    segments  index into SEGMENTS of each kept token            labels   names of labels -> flag of each kept token
    progress  share of its segment, by characters of the whole row, that lies before each kept token
    begins    names of labels -> flag of each kept token that is the first of a labelled stretch
    question  a number that the rows of one question share, or of one text where there is none
    """

    row: int
    ids: tuple[list[int], ...]
    places: tuple[list[int], ...]
    segments: list[int]
    progress: list[float]
    labels: dict[str, list[bool]]
    begins: dict[str, list[bool]]
    question: int


class Batch(NamedTuple):
    """Documents padded on the right; one entry a tokenizer in ids, mask and places.

    ids, mask  [batch, position]             places     [token] index of a kept token in the flattened [batch*position]
    token      [token] id of the kept token  document   [token] index of its document
    sequence   [token] its row of the batch  position   [token] its place in the document
    segment    [token] index into SEGMENTS   progress   [token] share of its segment that lies before it
    labels     name -> [token] bool          begins     name -> [token] bool: the first tokens of labelled stretches
    question   [token] number of its question, which several documents may share
    """

    ids: tuple[Tensor, ...]
    mask: tuple[Tensor, ...]
    places: tuple[Tensor, ...]
    token: Tensor
    document: Tensor
    sequence: Tensor
    position: Tensor
    segment: Tensor
    progress: Tensor
    labels: dict[str, Tensor]
    begins: dict[str, Tensor]
    question: Tensor

    def labelled(self, label: str) -> Tensor:
        """Mask [token] of the tokens with a label: none in documents that do not have it, whichever share their batch."""
        return self.labels.get(label, torch.zeros_like(self.token, dtype=torch.bool))

    def beginning(self, label: str) -> Tensor:
        """Mask [token] of the first tokens of labelled stretches."""
        return self.begins.get(label, torch.zeros_like(self.token, dtype=torch.bool))


@dataclass(eq=False)
class TextBatches(Iterator[Batch]):
    """Batches without end, bucketed by length: a window of documents is sorted, cut into batches of at most
    `tokens_per_batch` padded tokens, and the batches are shuffled. A finite text starts again with another shuffle.
    `documents` gives the documents anew at every call; TextError says `when_empty` if there are none.

    The position is (pass over the data, window, batch): state_dict() now, load_state_dict() later, same batches."""

    documents: Callable[[], Iterator[Document]]
    window_size: int
    tokens_per_batch: int
    seed: int
    when_empty: str

    def __post_init__(self) -> None:
        self.load_state_dict({"epoch": 0, "window": 0, "batch": 0})

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "window": self.window, "batch": self.batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.epoch, self.window, self.batch = state["epoch"], state["window"], state["batch"]
        self._source: Iterator[Document] | None = None
        self._groups: list[list[Document]] | None = None

    def __next__(self) -> Batch:
        if self._groups is None:
            self._groups = self._next_groups(self.window)
        while self.batch >= len(self._groups):
            self.window, self.batch = self.window + 1, 0
            self._groups = self._next_groups(0)
        self.batch += 1
        return collate(self._groups[self.batch - 1])

    def _next_groups(self, skipped_windows: int) -> list[list[Document]]:
        if self._source is None:
            self._source = self.documents()
            for _ in itertools.islice(self._source, skipped_windows * self.window_size):
                pass
        documents = list(itertools.islice(self._source, self.window_size))
        if not documents:
            if self.window == 0:
                raise TextError(self.when_empty)
            self.epoch, self.window, self.batch, self._source = self.epoch + 1, 0, 0, None
            return self._next_groups(0)
        groups = padded_groups(documents, self.tokens_per_batch, lambda document: max(map(len, document.ids)))
        generator = randomness.generator(self.seed, "order of documents", self.epoch, self.window)
        return [groups[i] for i in torch.randperm(len(groups), generator=generator)]


def padded_groups(items: Iterable[Item], tokens_per_batch: int, length: Callable[[Item], int]) -> list[list[Item]]:
    """Items by length, shortest first, in groups of at most so many tokens when each is padded to its longest item; an
    item that is longer than that stands alone."""
    groups: list[list[Item]] = []
    for item in sorted(items, key=length):
        if not groups or (len(groups[-1]) + 1) * length(item) > tokens_per_batch:
            groups.append([])
        groups[-1].append(item)
    return groups


def padded(rows: Sequence[Sequence[int]], side: str) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one tensor [row, position] with zeros on the left or right, and 1 where a token stands."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    ones = [torch.ones_like(row) for row in ids]
    whole, real = (pad_sequence(some, batch_first=True, padding_side=side) for some in (ids, ones))
    return whole, real


def collate(documents: Sequence[Document]) -> Batch:
    """Pads on the right; a kept token keeps its place in the flattened batch."""
    tokenizers = range(len(documents[0].ids))
    ids, mask = zip(*(padded([d.ids[m] for d in documents], "right") for m in tokenizers), strict=True)
    lengths = [one.shape[1] for one in ids]
    places = tuple(
        torch.tensor([n * lengths[m] + place for n, d in enumerate(documents) for place in d.places[m]])
        for m in tokenizers
    )
    sequence = torch.tensor([n for n, d in enumerate(documents) for _ in d.segments])
    names = sorted({name for d in documents for name in d.labels})

    def flags(of: Sequence[Mapping[str, list[bool]]]) -> dict[str, Tensor]:
        nothing = [[False] * len(d.segments) for d in documents]
        return {
            name: torch.tensor([flag for own, no in zip(of, nothing, strict=True) for flag in own.get(name, no)])
            for name in names
        }

    return Batch(
        ids=ids,
        mask=mask,
        places=places,
        token=ids[0].flatten()[places[0]],
        document=torch.tensor([d.row for d in documents for _ in d.segments]),
        sequence=sequence,
        position=places[0] - sequence * lengths[0],
        segment=torch.tensor([s for d in documents for s in d.segments], dtype=torch.uint8),
        progress=torch.tensor([share for d in documents for share in d.progress]),
        labels=flags([d.labels for d in documents]),
        begins=flags([d.begins for d in documents]),
        question=torch.tensor([d.question for d in documents for _ in d.segments]),
    )
