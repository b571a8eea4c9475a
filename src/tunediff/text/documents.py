"""Rows of a study -> documents: token ids for each tokenizer, which tokens are kept, their segments and labels."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tunediff.randomness import seed_for
from tunediff.shapes import SEGMENTS, TEMPLATE
from tunediff.text.aligned import LONG, Aligned, pieces
from tunediff.text.batches import Document, TextBatches
from tunediff.text.rendering import Manner, Rendered, refuse_all_but_strings, refuse_rotten_row, render, unfinished
from tunediff.text.rows import Placed, TextError
from tunediff.text.sound import Soundness, Source
from tunediff.text.templates import DATE
from tunediff.text.tokenizers import Tokenizer, beginning, one_of, touching

LOOKED_AT = 10_000  # rows of files that are read to see whether a text can be used; of others as many as that takes

# names of which a row needs one: where one of those behind the colon is there, the column of the first may be missing
INSTEAD = {
    "prompt": {"text"},
    "text": {"prompt"},
    "thinking": {"response", "text"},
    "answer": {"response", "text"},
    "response": {"thinking", "answer", "text"},
}
LABELS = {"spans", "pieces"}
WRITTEN = {"earlier", "since", "begun", "inoculation"}  # by steps of preparing.py alone
OURS = INSTEAD.keys() | LABELS | WRITTEN | {"conversation"}
UNFINISHED = ("keep", "leave_out", "refuse")
FATE = {"keep": "they are read as far as they go, without closing mark and end token", "leave_out": "they are left out"}
COUNTED = 1_000  # rows among which those without an answer are counted


class Text:
    """The documents of a study, in batches, from a position that can be saved.

    rows         a function without arguments that gives the rows anew; an endless one is fine
    fields       our name -> the data set's column: prompt, thinking, answer, response, text, conversation; and for labels
                 spans (field, first character, one past the last, label), pieces {label, text} of the thinking in order.
                 Without any, the columns have our names already; with some, only these are read
    prepare      steps by name, each from rows under our names to such rows: one a generation, a conversation's first turns
    instruction  put directly in front of every prompt      system   a system message, through the chat template
    thinking_format   how a response is laid out: the name of a known format, or a string with {thinking} and {answer};
                 None: R1's way
    template     arguments of the chat template               date     the day that a template is told instead of today
    hesitations  words that count as a hesitation, as regular expressions, by which thinking is labelled; None: Wait, Hmm,
                 Alternatively, Hold on
    labels       name -> regular expression whose matches in the thinking have this label; a row's own of the name go first
    context      tokens of one sequence      long   what becomes of a longer row: cut into several, of which none is
                 dropped; first: the first alone; keep_prompt: cut, each with the row's question before it, where that
                 takes no more than half the context
    unfinished   what becomes of a row without an answer, whose thinking was cut: keep, read as far as it goes, without closing
                 mark and end token; leave_out; refuse
    bad_rows     what becomes of a row that cannot be read: refuse, naming its place; or skip: it is left out and counted. Once
                 check() has looked at the beginning, one that training meets is left out and counted either way
    held_out     share of rows kept for evaluation, chosen by a hash of prompt or text; or a function of it -> bool
    segments     segments whose tokens are kept; None keeps all but what the chat template writes
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
        thinking_format: str | None = None,
        template: Mapping[str, Any] | None = None,
        date: str = DATE,
        hesitations: Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
        context: int = 1024,
        long: str = "cut",
        unfinished: str = "keep",
        bad_rows: str = "refuse",
        held_out: float | Callable[[str], bool] = 0.05,
        segments: Sequence[str] | None = None,
        drop_special: bool = True,
        drop_first: int = 0,
        seed: int = 0,
        window: int = 256,
        tokens_per_batch: int = 16384,
    ):
        if not callable(rows):
            raise TextError("text.rows is no function that gives rows anew: set text.rows._partial_=true.")
        if segments is not None and not segments:
            raise TextError(
                f"text.segments=[] keeps no token; the segments are {list(SEGMENTS)}, and null keeps all but template."
            )
        unknown = set(segments or ()) - set(SEGMENTS)
        if unknown:
            raise TextError(f"text.segments has {sorted(unknown)}; the segments are {list(SEGMENTS)}.")
        if context < 2:
            raise TextError(f"text.context={context}: a sequence needs at least 2 tokens.")
        for name, number in (("window", window), ("tokens_per_batch", tokens_per_batch)):
            if number < 1:
                raise TextError(f"text.{name}={number}: give at least 1.")
        if not 0 <= drop_first < context:
            raise TextError(
                f"text.drop_first={drop_first} leaves nothing of text.context={context}: give 0 or more, and less than that."
            )
        if not callable(held_out) and not 0 <= held_out <= 1:
            raise TextError(f"text.held_out={held_out} is no share of the rows: give one from 0 to 1.")
        if long not in LONG:
            raise TextError(f"text.long={long}: choose {', '.join(LONG)}.")
        if unfinished not in UNFINISHED:
            raise TextError(f"text.unfinished={unfinished}: choose {', '.join(UNFINISHED)}.")
        self.rows, self.fields, self.prepare = rows, dict(fields or {}), dict(prepare or {})
        said = {"instruction": instruction, "system": system, "thinking_format": thinking_format, "template": template}
        said |= {"date": str(date), "hesitations": None if hesitations is None else tuple(hesitations)}
        said["labels"] = None if labels is None else dict(labels)
        self.manner = Manner(**{key: value for key, value in said.items() if value is not None})
        self.manner.check()
        if isinstance(held_out, functools.partial):  # Hydra's own kind checks its target again at every row
            held_out = functools.partial(held_out.func, *held_out.args, **held_out.keywords)
        self.context, self.long, self.held_out, self.segments = context, long, held_out, segments
        self.unfinished, self.sound, self._looked_at = unfinished, Soundness(bad_rows), False
        self.drop_special, self.drop_first = drop_special, drop_first
        self.seed, self.window, self.tokens_per_batch = seed, window, tokens_per_batch

    def named_rows(self, *, held_out: bool, lacking: list[int] | None = None) -> Iterator[dict[str, Any]]:
        """Rows of one side of the split, under our names of the columns; each with its number in the data as `index`. Those
        without an answer are there as text.unfinished says, and their numbers go into `lacking`. Those that cannot be read
        are not there, or refused, as text.bad_rows says."""
        for index, named in enumerate(self._prepared(self.rows())):
            if self._is_held_out(_key(named)) != held_out:
                continue
            if held_out:
                named.pop("inoculation", None)
            try:
                refuse_all_but_strings(named)
            except TextError as error:
                self.sound.bad(error, named.place)
                continue
            if self.lacks_answer(named, index):
                if lacking is not None:
                    lacking.append(index)
                if self.unfinished == "leave_out":
                    continue
            named["index"] = index
            yield named

    def lacks_answer(self, row: Mapping[str, Any], index: int) -> bool:
        """True for a row whose response was cut before its answer. Raises TextError where such rows are refused."""
        lacks = unfinished(row, self.manner)
        if lacks and self.unfinished == "refuse":
            raise TextError(
                f"text.unfinished=refuse: row {index:,} (counted from 0) has no answer. Remove such rows, or choose keep, which "
                "reads them as far as they go, or leave_out."
            )
        return lacks

    def told(self) -> list[str]:
        """A sentence on the rows without an answer among the first COUNTED, of both sides; none where there are none. And one
        on the rows that were left out so far."""
        rows = itertools.islice(self._prepared(self.rows()), COUNTED)
        sound = (row for row, _ in self.sound.each(rows, refuse_all_but_strings))
        lacks = [self.lacks_answer(row, index) for index, row in enumerate(sound)]
        if not any(lacks):
            return self.sound.told()
        of = f"{sum(lacks):,} of the first {len(lacks):,} rows"
        return [
            f"{of} have no answer: {FATE[self.unfinished]} (text.unfinished={self.unfinished}).",
            *self.sound.told(),
        ]

    def _prepared(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Placed]:
        return self.sound.through(rows, [functools.partial(map, self._named), *self.prepare.values()])

    def _named(self, row: Mapping[str, Any]) -> dict[str, Any]:
        # what the data calls an answer need not be what we mean by it, and what a step writes is no column of the data
        hidden = dict.fromkeys((OURS if self.fields else WRITTEN) & row.keys())
        return {**row, **hidden, **{ours: row.get(theirs) for ours, theirs in self.fields.items()}}

    def read(self, tokenizer: Tokenizer, *, held_out: bool) -> Iterator[tuple[dict[str, Any], Rendered]]:
        """The rows of named_rows, each as the models read it, but for those that cannot be."""
        return self.sound.each(self.named_rows(held_out=held_out), lambda row: self.rendered(row, tokenizer))

    def _is_held_out(self, key: str) -> bool:
        if callable(self.held_out):
            return bool(self.held_out(key))
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") < self.held_out * 2**32

    def samples(self, tokenizer: Tokenizer, count: int = 32) -> list[str]:
        """The first rows as the models read them; for comparing tokenizers."""
        rows = itertools.islice(self.read(tokenizer, held_out=False), count)
        if not (texts := [rendered.text for _, rendered in rows]):
            raise TextError(
                " ".join(
                    [
                        "The text has no rows to train on: it is empty, or text.held_out takes them all.",
                        *self.sound.told(),
                    ]
                )
            )
        return texts

    @property
    def kept_segments(self) -> Sequence[str]:
        """The segments whose tokens are kept: what a template writes is kept only where it is asked for."""
        return [name for name in SEGMENTS if name != TEMPLATE] if self.segments is None else self.segments

    def check(self, *, evaluated: bool) -> None:
        """Raises TextError, before anything is trained, where no row has a column that is to be read, where a row cannot be read
        and is not to be left out, or where no row is left to evaluate on. Reads the first LOOKED_AT rows of files that are here;
        of others as many as it takes, and at most so many."""
        columns, seen, count, held, of_files = set(), set(), 0, not evaluated, False

        def looked_at() -> Iterator[Mapping[str, Any]]:
            nonlocal of_files
            for row in self._first_rows():
                of_files = isinstance(row, Placed) and row.here
                columns.update(row if isinstance(row, Mapping) else ())
                yield row

        prepared = itertools.islice(self._prepared(looked_at()), LOOKED_AT)
        for named, _ in self.sound.each(prepared, functools.partial(refuse_rotten_row, manner=self.manner)):
            count += 1
            seen.update(name for name in INSTEAD if named.get(name))
            held = held or self._is_held_out(_key(named))
            if not of_files and held and not self._missing(columns, seen):
                break
        self._looked_at = True
        if count and held and not self._missing(columns, seen):
            return
        if count == 0 and (left_out := self.sound.told()):
            raise TextError(f"The text has no rows to train on. {left_out[0]}")
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

    def _first_rows(self) -> Iterator[Any]:
        """The first LOOKED_AT rows as they are, bad ones refused or passed over."""
        return itertools.islice(Source(self.rows(), self.sound), LOOKED_AT)

    def _missing(self, columns: set[str], seen: set[str]) -> list[str]:
        """Our names of columns that no row has, and that nothing else takes the place of."""
        return [
            ours
            for ours, column in self.fields.items()
            if column not in columns and ours not in LABELS and not seen & INSTEAD.get(ours, set())
        ]

    def rendered(self, row: Mapping[str, Any], tokenizer: Tokenizer) -> Rendered:
        """A row of named_rows() as the string that the models read."""
        return render(row, tokenizer, self.manner)

    def documents(
        self,
        row: Mapping[str, Any],
        tokenizers: Sequence[Tokenizer],
        *,
        foreign: Sequence[str] = (),
        segments: Sequence[str] | None = None,
    ) -> list[Document]:
        """The row as one sequence, or several when it is longer than the context. No token that touches one of the
        `foreign` marks is kept; of the others those of the text's segments, special tokens left out as it says. With
        `segments` those of these are, special ones as well: marks are most of what a template writes."""
        rendered = self.rendered(row, tokenizers[0])
        whole = Aligned.of(rendered.text, tokenizers, marks=one_of(foreign))
        at = whole.offsets[0][whole.pairs[:, 0]]
        kept = ~whole.foreign
        for m, tokenizer in enumerate(tokenizers if self.drop_special and segments is None else ()):
            kept &= ~np.isin(whole.ids[m][whole.pairs[:, m]], list(tokenizer.all_special_ids))
        spans = np.array([first for first, _, _ in rendered.segments])
        names = np.array([SEGMENTS.index(name) for _, _, name in rendered.segments])
        span = rendered.segment_at(at[:, 0])
        segment = names[span]
        kept &= np.isin(segment, [SEGMENTS.index(name) for name in segments or self.kept_segments])
        sizes = np.array([last - first for first, last, _ in rendered.segments])
        progress = (at[:, 0] - spans[span]) / sizes[span]
        spans_of = {
            label: [(first, last) for first, last, name in rendered.labels if name == label]
            for label in sorted({name for _, _, name in rendered.labels})
        }
        labels = {label: touching(at, found) for label, found in spans_of.items()}
        begins = {label: np.zeros(len(at), dtype=bool) for label in spans_of}
        for label, found in spans_of.items():
            begins[label][kept] = beginning(at[kept], found)
        question = seed_for(0, "question of a row", _key(row))
        documents = []
        for piece in pieces(whole, self.context, self.long, prompt=rendered.response):
            low, high = np.searchsorted(whole.pairs[:, 0], (piece.begins[0], piece.ends[0]))
            chosen = low + np.flatnonzero(kept[low:high])
            for m, begin in enumerate(piece.begins):
                inside = whole.pairs[chosen, m] - begin
                chosen = chosen[
                    (inside >= max(0, self.drop_first - piece.before[m])) & (inside < piece.ends[m] - begin)
                ]
            ids = tuple(
                [*whole.ids[m][: piece.before[m]].tolist(), *whole.ids[m][begin : piece.ends[m]].tolist()]
                for m, begin in enumerate(piece.begins)
            )
            if not len(chosen) or not all(ids):
                continue
            places = tuple(
                (whole.pairs[chosen, m] - begin + piece.before[m]).tolist() for m, begin in enumerate(piece.begins)
            )
            marked, first = ({label: flags[chosen].tolist() for label, flags in of.items()} for of in (labels, begins))
            parts, shares = segment[chosen].tolist(), progress[chosen].tolist()
            documents.append(Document(row["index"], ids, places, parts, shares, marked, first, question))
        return documents

    def labelled(
        self, tokenizers: Sequence[Tokenizer], *, foreign: Sequence[str], needed: Mapping[str, int], tokens: int
    ) -> Counter[str]:
        """The number of kept held-out tokens with each label, until so many of those that are needed are found, or `tokens`
        are read."""
        found: Counter[str] = Counter()
        read = 0
        for _, documents in self._documents(tokenizers, held_out=True, foreign=foreign):
            for document in documents:
                read += len(document.segments)
                found.update({label: sum(flags) for label, flags in document.labels.items()})
            if read >= tokens or all(found[label] >= count for label, count in needed.items()):
                break
        return found

    def _documents(
        self, tokenizers: Sequence[Tokenizer], *, held_out: bool, foreign: Sequence[str]
    ) -> Iterator[tuple[dict[str, Any], list[Document]]]:
        rows = self.named_rows(held_out=held_out)
        return self.sound.each(rows, lambda row: self.documents(row, tokenizers, foreign=foreign))

    def batches(
        self,
        tokenizers: Sequence[Tokenizer],
        *,
        held_out: bool = False,
        tokens_per_batch: int | None = None,
        foreign: Sequence[str] = (),
    ) -> TextBatches:
        """Batches from the first document on; `tokens_per_batch` counts padding too, and `foreign` is as in documents."""

        side = "evaluate on: raise text.held_out" if held_out else "train on: the text is empty or filtered away"
        empty = f"The text has no tokens to {side}."
        if self._looked_at:  # no training ends at a row far behind
            self.sound.begun = True

        def documents() -> Iterator[Document]:
            any_at_all = False
            for _, found in self._documents(tokenizers, held_out=held_out, foreign=foreign):
                any_at_all = any_at_all or bool(found)
                yield from found
            if not any_at_all and (left_out := self.sound.told()):
                raise TextError(f"{empty} {left_out[0]}")

        return TextBatches(
            documents,
            window_size=self.window,
            tokens_per_batch=tokens_per_batch or self.tokens_per_batch,
            seed=self.seed,
            when_empty=empty,
        )


def _key(named: Mapping[str, Any]) -> str:
    """The string whose hash decides on which side of the split a row stands: of a conversation its first question."""
    key = str(named.get("begun") or named.get("prompt") or named.get("text") or "")
    return key.encode(errors="replace").decode()  # what no tokenizer can read is refused where it is rendered
