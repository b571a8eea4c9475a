"""Odd rows through every form of text, in process: nothing may end in a traceback, hang, or change what other rows say.

    python bench/campaigns/rows.py --count 5000 --seed 0

A case is a file of a few sound rows with one odd thing among them: a value of another type, a shape that is nearly right, bytes
that are no text, a file that is cut. It is read as a study reads it, once with text.bad_rows=refuse and once with skip; what is
read beside the odd row has to be what the sound rows alone are read as.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import gzip
import io
import json
import random
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from campaigns.told import Hang, limited, main
from tunediff import randomness
from tunediff.benchmarks import Task
from tunediff.files import located
from tunediff.shapes import Refused
from tunediff.text import Text, each_generation, exchange, in_s1_form, read_files

TOKENIZERS = Path(__file__).resolve().parent.parent.parent / "build" / "tokenizers"
PATIENCE = 30  # seconds that one case may take
SOUND = {
    "plain": [{"text": f"A text of {n} words.\nAnd a line."} for n in "one two three four".split()],
    "chat": [{"question": f"{n}+1?", "reply": f"<think>\n{n} and one.\n</think>\n\nIt is {n + 1}."} for n in range(4)],
    "conversation": [
        {"conversations": [{"from": "user", "value": f"{n}+1?"}, {"from": "assistant", "value": f"It is {n + 1}."}]}
        for n in range(4)
    ],
    "traces": [
        {
            "question": f"{n}+1?",
            "thinking": f"Okay, {n} and one. Wait, that is {n + 1}.",
            "answer": f"It is {n + 1}.",
            "spans": [["thinking", 0, 4, "opener"], ["answer", 0, 2, "says"]],
            "segments": [{"label": "start", "text": "Okay,"}, {"label": None, "text": "Wait"}],
        }
        for n in range(4)
    ],
    "generations": [
        {"problem": f"{n}+1?", "generations": [f"<think>\n{n}.\n</think>\n\n{n + 1}", "<think>\nno"], "whole": [True, False]}
        for n in range(4)
    ],
    "s1": [{"question": f"{n}+1?", "trajectory": [f"{n} and", "one."], "attempt": f"{n + 1}"} for n in range(4)],
    "task": [{"id": n, "question": f"{n}+1?", "answer": f"{n + 1}", "wrong": f"{n + 2}"} for n in range(4)],
}  # fmt: skip
FIELDS: dict[str, dict[str, Any]] = {
    "plain": {"fields": {"text": "text"}},
    "chat": {"fields": {"prompt": "question", "response": "reply"}},
    "conversation": {"fields": {"conversation": "conversations"}, "prepare": {"exchange": exchange}},
    "traces": {
        "fields": {
            "prompt": "question",
            "thinking": "thinking",
            "answer": "answer",
            "spans": "spans",
            "pieces": "segments",
        }
    },
    "generations": {
        "fields": {"prompt": "problem", "response": "generations"},
        "prepare": {"generations": functools.partial(each_generation, complete_only=True, complete="whole")},
    },
    "s1": {
        "fields": {"prompt": "question", "thinking": "trajectory", "answer": "attempt"},
        "prepare": {"s1": in_s1_form},
    },
}
WORDS = [
    "", " ", "\n\n", "\ud800", "a\udfffb", "\u0000", "\u202eabc", "e\u0301" * 9, "🙂", "\ufeff", "\x1b[31mred\x1b[0m", "=1+1",
    "<think>", "</think>", "<think></think>", "</think><think>", "<|im_end|>", "<|im_start|>user", "<｜User｜>", "{{ 7*7 }}",
    "{question}", "{0}", "%s", "word " * 3000, "x" * 20_000, "\\boxed{", "[]", '[{"role": "user", "content": "hi"}]',
    '[{"role": "user", "content": "2?"}, {"role": "assistant", "content": "2"}]', "null", "NaN", "\u2028", "\r", "<s>", "</s>",
]  # fmt: skip
LINES = [
    b"null", b"5", b'"text"', b"[1, 2]", b"{", b"}", b'{"text": "caf\xe9"}', b"\xff\xfe{\x00", b"\x00", b"[" * 50_000, b"NaN",
    b'{"text": "\xed\xa0\x80"}', b'{"n": ' + b"7" * 5000 + b"}", b'{"text": NaN}', b"<html>", b"version https://git-lfs",
    b'{"text": "a"}{"text": "b"}', b'{"a": 1, "a": 2}', b"{}", b'{"text": "a",}', b"\xef\xbb\xbf{}",
]  # fmt: skip


def odd_value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(14 if depth < 4 else 10)
    if kind < 5:
        return chance.choice(WORDS)
    if kind < 10:
        return chance.choice(
            [None, True, False, 0, -1, 1, 10**400, 0.5, float("nan"), float("inf"), -0.0, 1e308, [], {}, 2**63]
        )
    if kind < 12:
        return [odd_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    if kind == 12:
        keys = ["role", "content", "from", "value", "label", "text", "reasoning_content", "thinking", "", "\ud800"]
        return {chance.choice(keys): odd_value(chance, depth + 1) for _ in range(chance.randrange(4))}
    nested: Any = "deep"
    for _ in range(chance.choice([3, 50, 400])):
        nested = [nested] if chance.random() < 0.5 else {"text": nested}
    return nested


def mutated(value: Any, chance: random.Random) -> Any:
    """The value with something odd in its place, or somewhere inside."""
    if chance.random() < 0.4 or not isinstance(value, list | dict) or not value:
        if isinstance(value, str) and chance.random() < 0.5:
            return (
                value[: chance.randrange(len(value) + 1)]
                + chance.choice(WORDS)
                + value[chance.randrange(len(value) + 1) :]
            )
        return json.dumps(value) if chance.random() < 0.05 else odd_value(chance)
    value = copy.copy(value)
    place = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    how = chance.random()
    if how < 0.15:
        del value[place]
    elif how < 0.25 and isinstance(value, list):
        value.insert(place, chance.choice(value))
    else:
        value[place] = mutated(value[place], chance)
    return value


def odd_row(row: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    row = {**row, "id": "odd"} if "id" in row else {**row}
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        name = chance.choice(list(row) or ["text"])
        how = chance.random()
        if how < 0.1:
            row.pop(name, None)
        elif how < 0.2:
            row[chance.choice(["text", "prompt", "response", "system", "earlier", "index", "\ud800", ""])] = odd_value(
                chance
            )
        else:
            row[name] = mutated(row.get(name), chance)
    return row


def written(kind: str, place: Path, chance: random.Random) -> tuple[Path, str, bool]:
    """The file of a case, what is odd about it, and whether the sound rows are all in it as they are."""
    rows, at = SOUND[kind], chance.randrange(5)
    form = chance.choice(["row"] * 14 + ["line", "line", "cut gzip", "parquet", "rotten parquet", "utf-16", "gzip"])
    lines = [json.dumps(row).encode() for row in rows]
    if form in ("row", "gzip", "line"):
        odd = chance.choice(LINES) if form == "line" else json.dumps(odd_row(chance.choice(rows), chance)).encode()
        lines.insert(at, odd)
        content = chance.choice([b"\n", b"\n", b"\r\n"]).join(lines)
        file = place / ("rows.jsonl.gz" if form == "gzip" else "rows.jsonl")
        file.write_bytes(gzip.compress(content) if form == "gzip" else content)
        return (
            file,
            odd.decode(errors="replace")[:300],
            not (form == "line" and odd.startswith((b"\xff\xfe", b"\xef\xbb", b"version"))),
        )
    if form == "utf-16":
        file = place / "rows.jsonl"
        file.write_bytes(b"\n".join(lines).decode().encode("utf-16"))
        return file, form, False
    if form == "cut gzip":
        file = place / "rows.jsonl.gz"
        whole = gzip.compress(b"\n".join(lines))
        file.write_bytes(whole[: chance.randrange(len(whole))])
        return file, form, False
    sink, file = io.BytesIO(), place / "rows.parquet"
    rows = [{name: value for name, value in row.items() if name != "spans"} for row in rows]  # words beside numbers
    try:
        odd_one = odd_row(chance.choice(rows), chance) if form == "parquet" else rows[0]
        table = [*rows[:at], odd_one, *rows[at:]]
        names = dict.fromkeys(name for row in table for name in row)
        table = [{name: row.get(name) for name in names} for row in table]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), sink)
    except (pyarrow.ArrowException, OverflowError, UnicodeError, TypeError, RecursionError):  # no parquet can hold it
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    content = bytearray(sink.getvalue())
    if form == "rotten parquet":
        for _ in range(chance.randrange(1, 9)):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return file, form, False


def documents_of(kind: str, tokenizer: Any, **settings: Any) -> list[Any]:
    """What a study reads of a text on both sides, as plain values without the number of the row."""
    text = Text(**FIELDS[kind], context=64, held_out=0.5, **settings)
    text.check(evaluated=False)
    text.told()
    found = []
    for side in (False, True):
        with contextlib.suppress(Refused) if settings["bad_rows"] == "skip" else contextlib.nullcontext():
            text.samples(tokenizer) if not side else None
        found += [d for _, some in text._documents([tokenizer], held_out=side, foreign=()) for d in some]
    return [tuple(document)[1:] for document in found]


def problems_of(rows: Any) -> list[Any]:
    prompts = {"base": "{question}", "tuned": "Solve: {question}"}
    return Task(rows, question="question", answer="answer", id="id", prompts=prompts).problems()


def tokenizers(folder: Path) -> dict[str, Any]:
    places = {"toy": Path(located("pkg://tunediff.toy/weights/tuned"))}
    if folder.is_dir():
        places |= {path.name: path for path in sorted(folder.iterdir()) if (path / "tokenizer_config.json").is_file()}
    return {name: transformers.AutoTokenizer.from_pretrained(path) for name, path in places.items()}


def outcome(kind: str, file: Path, tokenizer: Any, sound: list[Any], all_there: bool) -> tuple[str, str]:
    """What became of a case, and the sentence."""
    rows = functools.partial(read_files, str(file))
    try:
        with limited(PATIENCE):
            if kind == "task":
                missing = {repr(one) for one in problems_of(lambda: SOUND[kind])} - set(map(repr, problems_of(rows)))
                return ("silent", "sound problems are missing") if missing else ("equal", "")
            try:
                strict, sentence = documents_of(kind, tokenizer, rows=rows, bad_rows="refuse"), ""
            except Refused as refusal:
                strict, sentence = None, str(refusal)
            try:
                lenient = documents_of(kind, tokenizer, rows=rows, bad_rows="skip")
            except Refused as refusal:
                return ("refused", str(refusal)) if strict is None and not all_there else ("silent", f"skip: {refusal}")
            if strict is not None and strict != lenient:
                return "silent", "refuse and skip read differently"
            if all_there and collections.Counter(map(repr, sound)) - collections.Counter(map(repr, lenient)):
                return "silent", f"sound rows are read differently beside it. {sentence}"
            return "equal" if strict is not None else "refused", sentence
    except Refused as refusal:
        return "refused", str(refusal)
    except Hang:
        return "hang", f"more than {PATIENCE} s"
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"[:200] + " | " + traceback.format_exc().splitlines()[
            -3
        ].strip()


def cases(count: int, seed: int, folder: Path = TOKENIZERS) -> Iterator[dict[str, str]]:
    """One dictionary a case: what was done, its outcome, the sentence."""
    known = tokenizers(folder)
    sound: dict[tuple[str, str], list[Any]] = {}
    for kind in FIELDS:
        for name, tokenizer in known.items():
            rows = functools.partial(iter, SOUND[kind])
            sound[kind, name] = documents_of(kind, tokenizer, rows=rows, bad_rows="refuse")
    with tempfile.TemporaryDirectory() as place:
        for n in range(count):
            chance = randomness.chance(seed, "campaign of odd rows", n)
            kind, name = chance.choice(list(SOUND)), chance.choice(list(known))
            file, odd, all_there = written(kind, Path(place), chance)
            became, sentence = outcome(kind, file, known[name], sound.get((kind, name), []), all_there)
            if became == "refused" and not sentence.isprintable():
                became = "silent"
            of_all = sentence.startswith(("The text has no rows", "No row of the text", "The benchmark is empty"))
            if became == "refused" and not of_all and file.name not in sentence:
                became, sentence = "silent", f"names no file: {sentence}"
            file.unlink()
            yield {"done": f"{kind}: {n}, {name}, {file.name}: {odd!r}", "outcome": became, "sentence": sentence}


if __name__ == "__main__":
    main(cases, __doc__ or "", count=5000)
