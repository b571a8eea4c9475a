"""Local files and the Hub -> rows: dictionaries of a data set's own columns. Nothing is read before it is asked for."""

from __future__ import annotations

import glob
import gzip
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunediff.shapes import Refused


class TextError(Refused):
    """A data set, tokenizer or pair of tokenizers that cannot be used; the message says why and what to do."""


def read_files(path: str | Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of local files, in the order of their names: .jsonl, .jsonl.gz, .parquet, and .txt or .txt.gz whose
    documents are separated by blank lines. `path` is a file, a folder, a pattern or a list of these."""
    wanted = [path] if isinstance(path, str) else list(path)
    found: list[str] = []
    for entry in wanted:
        pattern = str(Path(entry) / "*") if Path(entry).is_dir() else entry
        matches = sorted(name for name in glob.glob(pattern) if Path(name).is_file())
        if not matches:
            raise TextError(f"No file at '{entry}'. Give an existing file, folder or pattern.")
        found += matches
    for name in found:
        if name.endswith((".jsonl", ".jsonl.gz")):
            with _open(name) as lines:
                yield from (_parsed(line, name, n) for n, line in enumerate(lines, start=1) if line.strip())
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


def _parsed(line: str, name: str, number: int) -> dict[str, Any]:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise TextError(f"Line {number} of '{name}' is not JSON: {error.msg} at character {error.pos}.") from error


def read_hub(
    path: str, *, name: str | None = None, split: str = "train", revision: str | None = None, streaming: bool = True
) -> Iterator[dict[str, Any]]:
    """Rows of a data set on the Hugging Face Hub, or of a local copy in its format."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows = datasets.load_dataset(path, name, split=split, revision=revision, streaming=streaming)
    except (ConnectionError, OSError, DatasetNotFoundError) as error:
        raise TextError(
            f"Cannot load the data set '{path}': no such local copy, and the Hub was not reached ({type(error).__name__}). "
            f"Download it where there is a network and read it with text.rows._target_=tunediff.text.read_files "
            f"text.rows.path=<its jsonl or parquet files>; the problems of a task with task.<name>.file=<the files>."
        ) from error
    for row in rows:
        yield dict(row)
