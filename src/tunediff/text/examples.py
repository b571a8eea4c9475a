"""Rows of a text -> examples to learn from: token ids, which of them are learned, and the micro-batches of every step.

Learned is what the model would write: no token that begins in the prompt, and of the rest those of text.segments. A row
longer than the block is cut there, as s1 does (arXiv 2501.19393), not split: its remainder has lost the question. One
without an answer is as text.unfinished says; where it is kept it teaches no stop behind the thinking, for it has none. Which
examples a step holds depends on its number and the seed alone. Knows no model and no loss.
"""

from __future__ import annotations

import array
import bisect
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tunediff import randomness
from tunediff.shapes import TEMPLATE
from tunediff.text.documents import FATE, Text
from tunediff.text.rendering import Rendered
from tunediff.text.rows import TextError
from tunediff.text.tokenizers import Tokenizer, encode

IGNORED = -100  # the label of a position that teaches nothing, as torch's cross-entropy has it


class Example(NamedTuple):
    """One sequence. `learned[i]`: token i is to be predicted from those before it, so the first never is. `begins`:
    where the documents of a packed sequence begin."""

    ids: list[int]
    learned: list[bool]
    begins: tuple[int, ...] = (0,)


class Examples(Sequence[Example]):
    """Result of examples(). whole + cut are in it; the beheaded are not, for nothing learned was left of them. `unfinished`
    rows have no answer, of which is said what became of them."""

    def __init__(
        self,
        kept: Sequence[Example],
        *,
        block: int,
        cut: int,
        beheaded: int,
        without_answer: int,
        unfinished: int = 0,
        fate: str = "",
        left_out: Sequence[str] = (),
    ):
        self.kept, self.block, self.whole = list(kept), block, len(kept) - cut
        self.cut, self.beheaded, self.without_answer = cut, beheaded, without_answer
        self.unfinished, self.fate, self.left_out = unfinished, fate, left_out
        self.tokens = sum(len(example.ids) for example in self.kept)
        self.learned_tokens = sum(sum(example.learned) for example in self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index):
        return self.kept[index]

    @property
    def digest(self) -> str:
        """Hash of every id and flag in order."""
        total = hashlib.sha256()
        for example in self.kept:
            total.update(array.array("q", [len(example.ids), *example.ids]).tobytes())
            total.update(bytes(example.learned))
        return total.hexdigest()

    def report(self) -> str:
        """One sentence for the user."""
        said = f"{len(self):,} examples, {self.learned_tokens:,} of their {self.tokens:,} tokens learned"
        if self.cut:
            said += f", {self.cut:,} cut at {self.block:,} tokens"
            said += f", of which {self.without_answer:,} lose their whole answer" if self.without_answer else ""
        if self.unfinished:
            said += f"; {self.unfinished:,} rows have no answer: {self.fate}"
        said += "".join(f"; {sentence.rstrip('.')}" for sentence in self.left_out)
        return said + (f"; {self.beheaded:,} more left out: nothing to learn within the block" * bool(self.beheaded))


def examples(
    text: Text,
    tokenizer: Tokenizer,
    *,
    held_out: bool = False,
    block: int,
    setting: str = "recipe.block",
    limit: int | None = None,
    tokens: int | None = None,
    everything: bool = False,
) -> Examples:
    """One example a row, of one side of the split, in the order of the data. `limit` takes the first so many rows of
    that side, `tokens` rows until so many are reached; a text without end needs one of them. `everything` learns
    prompts too. `setting` is the name of the one that says how long the block is."""
    kept: list[Example] = []
    cut = beheaded = without_answer = rows = read = 0
    lacking: list[int] = []
    answers, shortest = False, math.inf
    thinking = _with_thinking(text, text.named_rows(held_out=held_out, lacking=lacking))
    source = itertools.islice(text.sound.each(thinking, lambda row: text.rendered(row, tokenizer)), limit)
    # a text without end shows itself by a bar without one
    for _, rendered in tqdm(source, desc="reading examples", unit="row", total=limit, leave=False, delay=5):
        rows += 1
        encoded = encode(tokenizer, rendered.text)
        starts = [first for first, _ in encoded["offset_mapping"]]
        segments = said_in(rendered, starts)
        wanted = [
            everything or at >= rendered.response and (text.segments is None or name in text.segments)
            for at, name in zip(starts, segments, strict=True)
        ]
        wanted[:1] = [False] * len(wanted[:1])  # nothing stands before it
        shortest = min(shortest, len(starts))
        answers = answers or "answer" in segments
        example = Example(list(encoded["input_ids"][:block]), wanted[:block])
        if not any(example.learned):
            beheaded += 1
            continue
        kept.append(example)
        read += len(example.ids)
        if len(starts) > block:
            cut += 1
            without_answer += "answer" in segments[block:] and "answer" not in segments[:block]
        if tokens is not None and read >= tokens:
            break
    if not rows:
        side = "held out: raise text.held_out" if held_out else "to learn from: the text is empty or all of it held out"
        raise TextError(f"The text has no rows {side}.")
    if answers and shortest > block:
        raise TextError(
            f"Every one of the {rows:,} examples is longer than {setting}={block:,} tokens (the shortest has {shortest:,}), so "
            f"all would lose their end and the model would never learn to stop. Raise {setting} to {shortest:,} or more."
        )
    if not kept:
        raise TextError(
            f"None of {rows:,} rows has a token to learn within {setting}={block:,}. Raise {setting}, or name other text.segments."
        )
    return Examples(
        kept,
        block=block,
        cut=cut,
        beheaded=beheaded,
        without_answer=without_answer,
        unfinished=len(lacking),
        fate=FATE[text.unfinished] if lacking else "",
        left_out=text.sound.told(),
    )


def said_in(rendered: Rendered, characters: Sequence[int]) -> list[str]:
    """The segment that each of some characters stands in: an end mark, which a template writes, belongs to what it ends."""
    names = [name for _, _, name in rendered.segments]
    for m in range(1, len(names)):
        if names[m] == TEMPLATE:
            names[m] = names[m - 1]
    return [names[n] for n in rendered.segment_at(characters)]


def _with_thinking(text: Text, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The rows. Raises TextError for one that lacks the thinking which its text has."""
    column = text.fields.get("thinking")
    for row in rows:
        if column is not None and not any(row.get(name) for name in ("thinking", "response", "text")):
            raise TextError(
                f"Row {row['index']:,} (counted from 0) has no thinking: its column '{column}' is "
                f"{'empty' if column in row else 'missing'}. Learning from it would teach answers without thinking: remove "
                "such rows, name another column with text.fields.thinking=<column>, or say that there is none with "
                "~text.fields.thinking."
            )
        yield row


def packed(examples: Sequence[Example], block: int) -> list[Example]:
    """Examples laid one after another into sequences of at most `block` tokens: the longest first, each where it leaves
    least room (best-fit decreasing). Which ones share a sequence is the same in every epoch."""
    room: list[tuple[int, int]] = []  # tokens that a sequence has left, and its number; sorted
    places: list[list[int]] = []
    for number in sorted(range(len(examples)), key=lambda n: -len(examples[n].ids)):
        length = len(examples[number].ids)
        if length > block:
            raise TextError(f"An example of {length:,} tokens does not fit into recipe.block={block:,}.")
        tightest = bisect.bisect_left(room, (length, 0))
        left, place = room.pop(tightest) if tightest < len(room) else (block, len(places))
        if place == len(places):
            places.append([])
        places[place].append(number)
        bisect.insort(room, (left - length, place))
    sequences = []
    for numbers in places:
        members = [examples[n] for n in sorted(numbers)]
        ends = list(itertools.accumulate(len(member.ids) for member in members))
        ids = [token for member in members for token in member.ids]
        sequences.append(Example(ids, [flag for m in members for flag in m.learned], (0, *ends[:-1])))
    return sequences


class MicroBatch(NamedTuple):
    """Sequences of one forward pass, padded on the right.

    ids, positions   [sequence, position]; positions begin anew at each document of a packed sequence
    labels           [sequence, position] the next token where it is learned, else IGNORED

    No mask is needed: attention is causal, so nothing looks at the padding; and where transformers is given positions
    that begin anew, and no mask, no document attends to the one before it (masking_utils.find_packed_sequence_indices).
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor


class Step(NamedTuple):
    """This process's part of one optimizer step; `learned` and `tokens` are those of all processes together."""

    micro_batches: list[MicroBatch]
    learned: int
    tokens: int


@dataclass(frozen=True)
class Batches:
    """Epochs of shuffled sequences, in steps of `batch` sequences over all processes. batches[n] is step n, whichever
    were asked for before: a position is the number of a step.

    batch         sequences of a step; the last step of an epoch holds what is left, so no example is dropped
    micro_batch   sequences of one forward pass
    rank, world   the micro-batches of a step are dealt out to the processes in turn. All get equally many, as their
                  collectives ask: where they do not come out even, one that teaches nothing is added
    """

    sequences: Sequence[Example]
    batch: int
    micro_batch: int
    epochs: int = 1
    seed: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        for name in ("batch", "micro_batch", "epochs"):
            if getattr(self, name) < 1:
                raise TextError(f"{name}={getattr(self, name)}: give a number from 1.")

    @property
    def steps_of_an_epoch(self) -> int:
        return -(-len(self.sequences) // self.batch)

    @property
    def tokens_of_a_step(self) -> int:
        """Average number of tokens of a step, for schedules whose spans are given in tokens."""
        return round(self.tokens / len(self))

    @property
    def tokens(self) -> int:
        """Number of tokens of all epochs, padding not counted."""
        return self.epochs * sum(len(sequence.ids) for sequence in self.sequences)

    def __len__(self) -> int:
        return self.epochs * self.steps_of_an_epoch

    def __getitem__(self, step: int) -> Step:
        if not 0 <= step < len(self):
            raise IndexError(step)
        numbers = self.numbers(step)
        cut = [numbers[n : n + self.micro_batch] for n in range(0, len(numbers), self.micro_batch)]
        cut += [[]] * (-len(cut) % self.world)
        chosen = [self.sequences[n] for n in numbers]
        return Step(
            [collated([self.sequences[n] for n in group]) for group in cut[self.rank :: self.world]],
            sum(sum(sequence.learned) for sequence in chosen),
            sum(len(sequence.ids) for sequence in chosen),
        )

    def numbers(self, step: int) -> list[int]:
        """Numbers of the sequences that a step holds."""
        epoch, place = divmod(step, self.steps_of_an_epoch)
        generator = randomness.generator(self.seed, "order of examples", epoch)
        order = torch.randperm(len(self.sequences), generator=generator)
        return order[place * self.batch : (place + 1) * self.batch].tolist()

    def since(self, step: int) -> Iterator[Step]:
        """The steps from this one on."""
        return (self[n] for n in range(step, len(self)))


def collated(sequences: Sequence[Example]) -> MicroBatch:
    """The sequences as one micro-batch; without a sequence, one token that teaches nothing."""
    length = max((len(sequence.ids) for sequence in sequences), default=1)
    shape = (max(len(sequences), 1), length)
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
    positions = torch.arange(length).repeat(shape[0], 1)
    for n, sequence in enumerate(sequences):
        end = len(sequence.ids)
        ids[n, :end] = torch.tensor(sequence.ids)
        learned = torch.tensor(sequence.learned[1:], dtype=torch.bool)
        labels[n, : end - 1] = torch.where(learned, ids[n, 1:end], IGNORED)
        for begin in sequence.begins:
            positions[n, begin:] = torch.arange(length - begin)
    return MicroBatch(ids, positions, labels)
