"""Rows -> rendered text -> token ids, segments and labels -> padded batches for the two models.

A row is a dictionary of strings: a problem with its response, or plain text. Nothing here knows a model or an
activation. Segments follow the character ranges of the rendered text, so they hold for every tokenizer.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunediff.shapes import SEGMENTS, THINKING_FORMAT, Refused

Span = tuple[int, int, str]  # first character, one past the last, name
SENTENCE_END = re.compile(r"[.!?。](?=\s|$)|\n")


class TextError(Refused):
    """A data set, tokenizer or pair of tokenizers that cannot be used; the message says why and what to do."""


class Rendered(NamedTuple):
    """One row as the models read it."""

    text: str
    segments: list[Span]
    labels: list[Span]


class Document(NamedTuple):
    """One sequence for a forward pass; a long row gives several.

    ids       token ids for each tokenizer (one list when both models read the same ids)
    places    for each tokenizer, the positions of the kept tokens; aligned, so all of one length
    segments  index into SEGMENTS of each kept token            labels   names of labels -> flag of each kept token
    """

    index: int
    ids: tuple[list[int], ...]
    places: tuple[list[int], ...]
    segments: list[int]
    labels: dict[str, list[bool]]


class Batch(NamedTuple):
    """Documents padded on the right; one entry a tokenizer in ids, mask and places.

    ids, mask  [batch, position]             places     [token] index of a kept token in the flattened [batch*position]
    token      [token] id of the kept token  document   [token] index of its document
    sequence   [token] its row of the batch  position   [token] its place in the document
    segment    [token] index into SEGMENTS   labels     name -> [token] bool
    """

    ids: tuple[Tensor, ...]
    mask: tuple[Tensor, ...]
    places: tuple[Tensor, ...]
    token: Tensor
    document: Tensor
    sequence: Tensor
    position: Tensor
    segment: Tensor
    labels: dict[str, Tensor]


# -- rows ------------------------------------------------------------------------------------------------------------


def read_files(path: str | Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of local files, in the order of their names: .jsonl, .jsonl.gz, .parquet, and .txt or .txt.gz whose
    documents are separated by blank lines. `path` is a file, a folder, a pattern or a list of these."""
    wanted = [path] if isinstance(path, str) else list(path)
    found: list[str] = []
    for entry in wanted:
        pattern = str(Path(entry) / "*") if Path(entry).is_dir() else entry
        matches = sorted(name for name in glob.glob(pattern) if Path(name).is_file())
        if not matches:
            raise TextError(f"No file at '{entry}'. Give text.rows.path an existing file, folder or pattern.")
        found += matches
    for name in found:
        if name.endswith((".jsonl", ".jsonl.gz")):
            with _open(name) as lines:
                yield from (json.loads(line) for line in lines if line.strip())
        elif name.endswith(".parquet"):
            import pyarrow.parquet

            for part in pyarrow.parquet.ParquetFile(name).iter_batches():
                yield from part.to_pylist()
        elif name.endswith((".txt", ".txt.gz")):
            with _open(name) as lines:
                for blank, block in itertools.groupby(lines, key=lambda line: not line.strip()):
                    if not blank:
                        yield {"text": "".join(block)}
        elif len(found) == 1:
            raise TextError(f"'{name}' is none of .jsonl, .jsonl.gz, .parquet, .txt, .txt.gz.")


def _open(name: str):
    return gzip.open(name, "rt", encoding="utf-8") if name.endswith(".gz") else open(name, encoding="utf-8")


def read_hub(
    path: str, *, name: str | None = None, split: str = "train", revision: str | None = None, streaming: bool = True
) -> Iterator[dict[str, Any]]:
    """Rows of a data set on the Hugging Face Hub, or of a local copy in its format."""
    import datasets

    try:
        rows = datasets.load_dataset(path, name, split=split, revision=revision, streaming=streaming)
    except (ConnectionError, OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise TextError(
            f"Cannot load the data set '{path}': no such local copy, and the Hub was not reached ({type(error).__name__}). "
            f"Download it where there is a network and read it with text.rows._target_=tunediff.text.read_files "
            f"text.rows.path=<its jsonl or parquet files>."
        ) from error
    yield from rows


# -- rows to text ----------------------------------------------------------------------------------------------------


def render(row: Mapping[str, Any], tokenizer, instruction: str = "") -> Rendered:
    """The row as one string. `prompt` goes through the chat template; `thinking` and `answer` (or a whole `response`
    with its think tags) follow as the model would write them, with the end token. `text` stands as it is."""
    if row.get("text"):
        opening = _opening(tokenizer)
        whole = opening + row["text"]
        return Rendered(whole, [(0, len(whole), "text")], _moved(row, {"text": len(opening)}))
    if not row.get("prompt"):
        raise TextError(
            f"A row has neither 'prompt' nor 'text', only {sorted(row)}. Map its columns with text.fields, "
            "for example text.fields={prompt: question, answer: answer}."
        )
    question = instruction + row["prompt"]
    if tokenizer.chat_template:
        message = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    else:
        prompt = _opening(tokenizer) + question + "\n\n"
    thinking, answer = row.get("thinking") or "", row.get("answer") or ""
    if row.get("response"):
        head, closed, tail = row["response"].partition("</think>")
        thinking, answer = (head.replace("<think>", "", 1).strip(), tail.strip()) if closed else ("", head.strip())
    body = THINKING_FORMAT.format(thinking=thinking, answer=answer) if thinking else answer
    opening = "<think>\n"
    if prompt.endswith(opening):  # newer R1 templates open the thinking themselves
        body = body.removeprefix(opening)
    whole = prompt + body + (tokenizer.eos_token or "")
    starts = {"prompt": prompt.find(row["prompt"]), "answer": len(prompt) + len(body) - len(answer)}
    segments: list[Span] = [(0, len(prompt), "prompt")]
    if thinking:
        starts["thinking"] = whole.index(thinking, len(prompt))
        sentence = SENTENCE_END.search(thinking)
        prefix_end = starts["thinking"] + (sentence.end() if sentence else len(thinking))
        segments += [(len(prompt), prefix_end, "prefix"), (prefix_end, starts["answer"], "thinking")]
    segments.append((starts["answer"], len(whole), "answer"))
    return Rendered(whole, segments, _moved(row, starts))


def _opening(tokenizer) -> str:
    """The begin token, where the tokenizer puts one before a text of its own accord; chat templates bring theirs."""
    begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return tokenizer.bos_token if begins else ""


def _moved(row: Mapping[str, Any], starts: Mapping[str, int]) -> list[Span]:
    """Label spans, given within a field, as spans of the rendered text."""
    spans = row.get("spans") or ()
    return [
        (starts[field] + first, starts[field] + last, name) for field, first, last, name in spans if field in starts
    ]


# -- tokenizers of a pair --------------------------------------------------------------------------------------------

PROBES = (
    "The answer is 42. Wait, let me check: 3*14=42.\n\nSo \\boxed{42}",
    "def f(x):\n    return x**2  # naïve – 東京 🙂",
    "$\\frac{1}{2}+\\sqrt{3}\\le 10^{-4}$ and 1,234,567.89",
    "Okay, so the user wants  two spaces\tand a tab.",
)


class Agreement(NamedTuple):
    """How far two tokenizers agree. `examples` are texts that they cut differently, with both lists of ids;
    `specials` are ids whose meaning differs."""

    examples: list[tuple[str, list[int], list[int]]]
    specials: list[str]


def compare_tokenizers(owner, other, texts: Iterable[str] = ()) -> Agreement:
    """Encodes probes and the study's own texts with both, and lists special tokens that differ."""
    examples = []
    for text in (*PROBES, *texts):
        first, second = (list(_encode(t, text)["input_ids"]) for t in (owner, other))
        if first != second:
            examples.append((text[:60], first, second))
    mine, theirs = (_special_tokens(t) for t in (owner, other))
    specials = [
        f"id {i}: {mine.get(i, 'not special')!r} in one, {theirs.get(i, 'not special')!r} in the other"
        for i in sorted(mine.keys() | theirs.keys())
        if mine.get(i) != theirs.get(i)
    ]
    return Agreement(examples, specials)


def _special_tokens(tokenizer) -> dict[int, str]:
    return {i: str(token) for i, token in tokenizer.added_tokens_decoder.items()}


def _encode(tokenizer, text: str):
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)


# -- text to documents and batches -----------------------------------------------------------------------------------


class Text:
    """The documents of a study, in batches, from a position that can be saved.

    rows         a function without arguments that gives the rows anew; an endless one is fine
    fields       our name -> the data set's column: prompt, thinking, answer, response, text, spans
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
        instruction: str = "",
        context: int = 1024,
        held_out: float | Callable[[str], bool] = 0.05,
        segments: Sequence[str] | None = None,
        drop_special: bool = True,
        drop_first: int = 0,
        seed: int = 0,
        window: int = 256,
        tokens_per_batch: int = 8192,
    ):
        unknown = set(segments or ()) - set(SEGMENTS)
        if unknown:
            raise TextError(f"text.segments has {sorted(unknown)}; the segments are {list(SEGMENTS)}.")
        if context < 2:
            raise TextError(f"text.context={context}: a sequence needs at least 2 tokens.")
        self.rows, self.fields, self.instruction = rows, dict(fields or {}), instruction
        self.context, self.held_out, self.segments = context, held_out, segments
        self.drop_special, self.drop_first = drop_special, drop_first
        self.seed, self.window, self.tokens_per_batch = seed, window, tokens_per_batch

    def named_rows(self, *, held_out: bool) -> Iterator[dict[str, Any]]:
        """Rows of one side of the split, under our names of the columns; each with its number in the data as `index`."""
        for index, row in enumerate(self.rows()):
            named = {**row, **{ours: row.get(theirs) for ours, theirs in self.fields.items()}}
            if self._is_held_out(named.get("prompt") or named.get("text") or "") == held_out:
                yield {**named, "index": index}

    def _is_held_out(self, key: str) -> bool:
        if callable(self.held_out):
            return bool(self.held_out(key))
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") < self.held_out * 2**32

    def samples(self, count: int = 8) -> list[str]:
        """The first rows as text, without template and special tokens; for comparing tokenizers."""
        texts = []
        for row in itertools.islice(self.named_rows(held_out=False), count):
            texts += [str(row[name])[:2000] for name in ("text", "prompt", "thinking", "answer") if row.get(name)]
        if not texts:
            raise TextError("The text has no rows to train on: it is empty, or text.held_out takes them all.")
        return texts

    def documents(self, row: Mapping[str, Any], tokenizers: Sequence) -> list[Document]:
        """The row as one sequence, or several when it is longer than the context."""
        rendered = render(row, tokenizers[0], self.instruction)
        encoded = [_encode(tokenizer, rendered.text) for tokenizer in tokenizers]
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
            kept = [
                pair
                for pair in pairs
                if all(a <= i < b and i - a >= self.drop_first for i, (a, b) in zip(pair, bounds, strict=True))
                and all(e["input_ids"][i] not in s for i, e, s in zip(pair, encoded, special, strict=True))
            ]
            segments = _names_at([starts[p[0]] for p in kept], rendered.segments)
            if self.segments is not None:
                chosen = [n for n, name in enumerate(segments) if name in self.segments]
                kept, segments = [kept[n] for n in chosen], [segments[n] for n in chosen]
            if not kept or not all(ids):
                continue
            places = tuple([p[m] - bounds[m][0] for p in kept] for m in range(len(encoded)))
            characters = [(starts[p[0]], ends[0][p[0]]) for p in kept]
            labels = {
                label: _touching(characters, [s for s in rendered.labels if s[2] == label])
                for label in sorted({s[2] for s in rendered.labels})
            }
            documents.append(Document(row["index"], ids, places, [SEGMENTS.index(s) for s in segments], labels))
        return documents

    def batches(
        self, tokenizers: Sequence, *, held_out: bool = False, tokens_per_batch: int | None = None
    ) -> TextBatches:
        """Batches from the first document on; `tokens_per_batch` counts padding too."""
        limit = tokens_per_batch or self.tokens_per_batch
        return TextBatches(self, tokenizers, held_out=held_out, tokens_per_batch=limit)


class TextBatches:
    """Batches without end, bucketed by length: a window of documents is sorted, cut into batches of at most
    `tokens_per_batch` padded tokens, and the batches are shuffled. A finite text starts again with another shuffle.

    The position is (pass over the data, window, batch): state_dict() now, load_state_dict() later, same batches."""

    def __init__(self, text: Text, tokenizers: Sequence, *, held_out: bool, tokens_per_batch: int):
        self.text, self.tokenizers, self.held_out = text, tokenizers, held_out
        self.tokens_per_batch = tokens_per_batch
        self.load_state_dict({"epoch": 0, "window": 0, "batch": 0})

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "window": self.window, "batch": self.batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.epoch, self.window, self.batch = state["epoch"], state["window"], state["batch"]
        self._source: Iterator[Document] | None = None
        self._groups: list[list[Document]] | None = None

    def __iter__(self) -> TextBatches:
        return self

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
            self._source = self._documents()
            for _ in itertools.islice(self._source, skipped_windows * self.text.window):
                pass
        documents = list(itertools.islice(self._source, self.text.window))
        if not documents:
            if self.window == 0:
                side = (
                    "evaluate on: raise text.held_out"
                    if self.held_out
                    else "train on: the text is empty or filtered away"
                )
                raise TextError(f"The text has no tokens to {side}.")
            self.epoch, self.window, self.batch, self._source = self.epoch + 1, 0, 0, None
            return self._next_groups(0)
        documents.sort(key=lambda d: max(map(len, d.ids)))
        groups: list[list[Document]] = []
        longest = 0
        for document in documents:
            longest = max(longest, *map(len, document.ids))
            if not groups or (len(groups[-1]) + 1) * longest > self.tokens_per_batch:
                groups.append([])
                longest = max(map(len, document.ids))
            groups[-1].append(document)
        generator = torch.Generator().manual_seed(hash((self.text.seed, self.epoch, self.window)) % 2**63)
        return [groups[i] for i in torch.randperm(len(groups), generator=generator)]

    def _documents(self) -> Iterator[Document]:
        for row in self.text.named_rows(held_out=self.held_out):
            yield from self.text.documents(row, self.tokenizers)


def collate(documents: Sequence[Document]) -> Batch:
    """Pads on the right; a kept token keeps its place in the flattened batch."""
    tokenizers = range(len(documents[0].ids))
    lengths = [max(len(d.ids[m]) for d in documents) for m in tokenizers]
    ids = tuple(torch.zeros(len(documents), length, dtype=torch.long) for length in lengths)
    mask = tuple(torch.zeros(len(documents), length, dtype=torch.long) for length in lengths)
    for n, document in enumerate(documents):
        for m in tokenizers:
            ids[m][n, : len(document.ids[m])] = torch.tensor(document.ids[m])
            mask[m][n, : len(document.ids[m])] = 1
    places = tuple(
        torch.tensor([n * lengths[m] + place for n, d in enumerate(documents) for place in d.places[m]])
        for m in tokenizers
    )
    sequence = torch.tensor([n for n, d in enumerate(documents) for _ in d.segments])
    names = sorted({name for d in documents for name in d.labels})
    return Batch(
        ids=ids,
        mask=mask,
        places=places,
        token=ids[0].flatten()[places[0]],
        document=torch.tensor([d.index for d in documents for _ in d.segments]),
        sequence=sequence,
        position=places[0] - sequence * lengths[0],
        segment=torch.tensor([s for d in documents for s in d.segments], dtype=torch.uint8),
        labels={
            name: torch.tensor([flag for d in documents for flag in d.labels.get(name, [False] * len(d.segments))])
            for name in names
        },
    )


def _common_ends(ends: Sequence[list[int]]) -> list[tuple[int, int]]:
    """Pairs of tokens of two tokenizers that end on the same character."""
    second = {end: i for i, end in enumerate(ends[1])}
    return [(i, second[end]) for i, end in enumerate(ends[0]) if end in second]


def _names_at(characters: Sequence[int], spans: Sequence[Span]) -> list[str]:
    """The span that each character stands in; the spans cover the text in order."""
    names, n = [], 0
    for character in characters:
        while n + 1 < len(spans) and character >= spans[n][1]:
            n += 1
        names.append(spans[n][2])
    return names


def _touching(tokens: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[bool]:
    """Whether each token shares a character with one of the spans."""
    return [any(start < last and end > first for first, last, _ in spans) for start, end in tokens]
