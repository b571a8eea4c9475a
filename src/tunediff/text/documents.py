"""Rows of a study -> documents: token ids for each tokenizer, which tokens are kept, their segments and labels."""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tunediff.shapes import SEGMENTS, THINKING_FORMAT
from tunediff.text.batches import Document, TextBatches
from tunediff.text.rendering import Rendered, Span, layout, refuse_all_but_strings, render
from tunediff.text.rows import TextError
from tunediff.text.tokenizers import Tokenizer, encode

LOOKED_AT = 10_000  # rows that are read to see whether a text can be used; it may have no end

# names of which a row needs one: where one of those behind the colon is there, the column of the first may be missing
INSTEAD = {
    "prompt": {"text"},
    "text": {"prompt"},
    "thinking": {"response", "text"},
    "answer": {"response", "text"},
    "response": {"thinking", "answer", "text"},
}
LABELS = {"spans", "pieces"}


class Text:
    """The documents of a study, in batches, from a position that can be saved.

    rows         a function without arguments that gives the rows anew; an endless one is fine
    fields       our name -> the data set's column: prompt, thinking, answer, response, text, conversation; and for labels
                 spans (field, first character, one past the last, label), pieces {label, text} of the thinking in order.
                 Without any, the columns have our names already; with some, only these are read
    prepare      steps by name, each from rows under our names to such rows: one a generation, a conversation's first turns
    instruction  put directly in front of every prompt      system   a system message, through the chat template
    thinking_format   how a response is laid out: a format string with {thinking} and {answer}; None: R1's way
    context      tokens of one sequence; a longer row is cut into several, none is dropped
    held_out     share of rows kept for evaluation, chosen by a hash of prompt or text; or a function of it -> bool
    segments     segments whose tokens are kept; None keeps all
    seed         of the order of batches
    window       documents sorted by length at a time      tokens_per_batch   of one forward pass, padding counted
    """

    def __init__(
        self,
        rows: Callable[[], Iterable[Mapping[str, Any]]],
        *,
        fields: Mapping[str, str] | None = None,
        prepare: Mapping[str, Callable[[Iterable[Mapping[str, Any]]], Iterable[Mapping[str, Any]]]] | None = None,
        instruction: str = "",
        system: str | None = None,
        thinking_format: str | None = THINKING_FORMAT,
        context: int = 1024,
        held_out: float | Callable[[str], bool] = 0.05,
        segments: Sequence[str] | None = None,
        drop_special: bool = True,
        drop_first: int = 0,
        seed: int = 0,
        window: int = 256,
        tokens_per_batch: int = 16384,
    ):
        if segments is not None and not segments:
            raise TextError(f"text.segments=[] keeps no token; the segments are {list(SEGMENTS)}, and null keeps all.")
        unknown = set(segments or ()) - set(SEGMENTS)
        if unknown:
            raise TextError(f"text.segments has {sorted(unknown)}; the segments are {list(SEGMENTS)}.")
        if context < 2:
            raise TextError(f"text.context={context}: a sequence needs at least 2 tokens.")
        thinking_format = THINKING_FORMAT if thinking_format is None else thinking_format
        layout(thinking_format)
        self.rows, self.fields, self.prepare = rows, dict(fields or {}), dict(prepare or {})
        self.instruction, self.system, self.thinking_format = instruction, system, thinking_format
        if isinstance(held_out, functools.partial):  # Hydra's own kind checks its target again at every row
            held_out = functools.partial(held_out.func, *held_out.args, **held_out.keywords)
        self.context, self.held_out, self.segments = context, held_out, segments
        self.drop_special, self.drop_first = drop_special, drop_first
        self.seed, self.window, self.tokens_per_batch = seed, window, tokens_per_batch

    def named_rows(self, *, held_out: bool) -> Iterator[dict[str, Any]]:
        """Rows of one side of the split, under our names of the columns; each with its number in the data as
        `index`."""
        for index, named in enumerate(self._prepared(self.rows())):
            if self._is_held_out(_key(named)) == held_out:
                yield {**named, "index": index}

    def _prepared(self, rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
        rows = map(self._named, rows)
        for step in self.prepare.values():
            rows = step(rows)
        return rows

    def _named(self, row: Mapping[str, Any]) -> dict[str, Any]:
        # what the data calls an answer need not be what we mean by it
        hidden = dict.fromkeys(INSTEAD.keys() & row.keys()) if self.fields else {}
        return {**row, **hidden, **{ours: row.get(theirs) for ours, theirs in self.fields.items()}}

    def _is_held_out(self, key: str) -> bool:
        if callable(self.held_out):
            return bool(self.held_out(key))
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") < self.held_out * 2**32

    def samples(self, count: int = 8) -> list[str]:
        """The first rows as text, without template and special tokens; for comparing tokenizers."""
        texts = []
        for row in itertools.islice(self.named_rows(held_out=False), count):
            texts += [
                str(row[name])[:2000] for name in ("text", "prompt", "response", "thinking", "answer") if row.get(name)
            ]
        if not texts:
            raise TextError("The text has no rows to train on: it is empty, or text.held_out takes them all.")
        return texts

    def check(self, *, evaluated: bool) -> None:
        """Raises TextError, before anything is trained, where no row has a column that is to be read, where something
        else than a string stands in one, or where no row is left to evaluate on. Reads as many rows as that takes, and
        at most the first LOOKED_AT."""
        columns, seen, count, held = set(), set(), 0, not evaluated

        def looked_at() -> Iterator[Mapping[str, Any]]:
            for row in itertools.islice(self.rows(), LOOKED_AT):
                columns.update(row)
                yield row

        for named in itertools.islice(self._prepared(looked_at()), LOOKED_AT):
            refuse_all_but_strings(named)
            count += 1
            seen.update(name for name in INSTEAD if named.get(name))
            held = held or self._is_held_out(_key(named))
            if held and not self._missing(columns, seen):
                return
        if not columns:
            raise TextError("The text has no rows to train on: it is empty.")
        if not count:
            raise TextError(f"The text has no rows to train on: {', '.join(self.prepare)} of text.prepare leaves none.")
        for ours in self._missing(columns, seen):
            way = f"Name the column with text.fields.{ours}=<column>"
            if "response" in INSTEAD.get(ours, ()):
                way += (
                    ", that of whole responses with +text.fields.response=<column>, or say that there is no "
                    f"{ours} with ~text.fields.{ours}"
                )
            raise TextError(
                f"No row of the text has the column '{self.fields[ours]}' that its {ours} is read from: there are only "
                f"{', '.join(sorted(columns))}. {way}."
            )
        said = "" if callable(self.held_out) else f"={self.held_out}"
        raise TextError(
            f"The text leaves nothing to evaluate on: text.held_out{said} keeps none of the first {count:,} "
            f"row{'s' if count != 1 else ''}. Raise it, give more rows, or choose evaluation=none."
        )

    def _missing(self, columns: set[str], seen: set[str]) -> list[str]:
        """Our names of columns that no row has, and that nothing else takes the place of."""
        return [
            ours
            for ours, column in self.fields.items()
            if column not in columns and ours not in LABELS and not seen & INSTEAD.get(ours, set())
        ]

    def rendered(self, row: Mapping[str, Any], tokenizer: Tokenizer) -> Rendered:
        """A row of named_rows() as the string that the models read."""
        return render(row, tokenizer, self.instruction, system=self.system, thinking_format=self.thinking_format)

    def documents(self, row: Mapping[str, Any], tokenizers: Sequence[Tokenizer]) -> list[Document]:
        """The row as one sequence, or several when it is longer than the context."""
        rendered = self.rendered(row, tokenizers[0])
        encoded = [encode(tokenizer, rendered.text) for tokenizer in tokenizers]
        ends = [[last for _, last in e["offset_mapping"]] for e in encoded]
        starts = [first for first, _ in encoded[0]["offset_mapping"]]
        pairs = _common_ends(ends) if len(encoded) == 2 else [(i,) for i in range(len(starts))]
        special = [set(t.all_special_ids) if self.drop_special else set() for t in tokenizers]
        documents = []
        for cut in range(0, len(starts), self.context):
            # the owner's tokens of this piece, and the other's up to the same character
            bounds = [(cut, min(cut + self.context, len(starts)))]
            for other in range(1, len(encoded)):
                low, high = (ends[0][b - 1] if b else 0 for b in bounds[0])
                inside = [i for i, end in enumerate(ends[other]) if low < end <= high]
                bounds.append((inside[0], inside[-1] + 1) if inside else (0, 0))
            ids = tuple(list(e["input_ids"][a:b]) for e, (a, b) in zip(encoded, bounds, strict=True))
            near = pairs[bisect.bisect_left(pairs, (cut,)) : bisect.bisect_left(pairs, (bounds[0][1],))]
            kept = [
                pair
                for pair in near
                if all(a <= i < b and i - a >= self.drop_first for i, (a, b) in zip(pair, bounds, strict=True))
                and all(e["input_ids"][i] not in s for i, e, s in zip(pair, encoded, special, strict=True))
            ]
            spans = spans_at([starts[p[0]] for p in kept], rendered.segments)
            if self.segments is not None:
                chosen = [n for n, span in enumerate(spans) if span[2] in self.segments]
                kept, spans = [kept[n] for n in chosen], [spans[n] for n in chosen]
            if not kept or not all(ids):
                continue
            places = tuple([p[m] - bounds[m][0] for p in kept] for m in range(len(encoded)))
            characters = [(starts[p[0]], ends[0][p[0]]) for p in kept]
            labels = {
                label: _touching(characters, [s for s in rendered.labels if s[2] == label])
                for label in sorted({s[2] for s in rendered.labels})
            }
            segments = [SEGMENTS.index(name) for _, _, name in spans]
            progress = [
                (at - first) / (last - first) for (at, _), (first, last, _) in zip(characters, spans, strict=True)
            ]
            documents.append(Document(row["index"], ids, places, segments, progress, labels))
        return documents

    def batches(
        self, tokenizers: Sequence[Tokenizer], *, held_out: bool = False, tokens_per_batch: int | None = None
    ) -> TextBatches:
        """Batches from the first document on; `tokens_per_batch` counts padding too."""

        def documents() -> Iterator[Document]:
            for row in self.named_rows(held_out=held_out):
                yield from self.documents(row, tokenizers)

        side = "evaluate on: raise text.held_out" if held_out else "train on: the text is empty or filtered away"
        return TextBatches(
            documents,
            window_size=self.window,
            tokens_per_batch=tokens_per_batch or self.tokens_per_batch,
            seed=self.seed,
            when_empty=f"The text has no tokens to {side}.",
        )


def _key(named: Mapping[str, Any]) -> str:
    """The string whose hash decides on which side of the split a row stands."""
    return named.get("prompt") or named.get("text") or ""


def _common_ends(ends: Sequence[list[int]]) -> list[tuple[int, int]]:
    """Pairs of tokens of two tokenizers that end on the same character."""
    second = {end: i for i, end in enumerate(ends[1])}
    return [(i, second[end]) for i, end in enumerate(ends[0]) if end in second]


def spans_at(characters: Sequence[int], spans: Sequence[Span]) -> list[Span]:
    """The span that each character stands in; the spans cover the text in order."""
    found, n = [], 0
    for character in characters:
        while n + 1 < len(spans) and character >= spans[n][1]:
            n += 1
        found.append(spans[n])
    return found


def _touching(tokens: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[bool]:
    """[token] true where a token shares a character with one of the spans."""
    spans = sorted(spans)
    begins, reached = [first for first, _, _ in spans], [0, *itertools.accumulate((last for _, last, _ in spans), max)]
    return [start < reached[bisect.bisect_left(begins, end)] for start, end in tokens]
