"""Local files and the Hub -> rows: dictionaries of a data set's own columns. Nothing is read before it is asked for."""

from __future__ import annotations

import glob
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunediff.shapes import Refused

POINTER = b"version https://git-lfs"  # how a file of a few lines begins that Git leaves in place of a large one
POINTED = (
    "is a pointer of git-LFS, not the file itself. Run `git lfs pull` in the folder, or download it with `hf download`."
)


class TextError(Refused):
    """A data set, tokenizer or pair of tokenizers that cannot be used; the message says why and what to do."""


def is_pointer(file: str | Path) -> bool:
    """True where Git left a pointer in a file's place."""
    with open(file, "rb") as content:
        return content.read(len(POINTER)) == POINTER


def read_files(path: str | Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of local files, in the order of their names: .jsonl, .jsonl.gz, .parquet, and .txt or .txt.gz whose
    documents are separated by blank lines. `path` is a file, a folder, a pattern or a list of these. Raises TextError where
    a file cannot be read on, once the rows before that have been given."""
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
            yield from (_parsed(line, name, n) for n, line in _lines(name) if line.strip())
        elif name.endswith(".parquet"):
            yield from _parquet(name)
        elif name.endswith((".txt", ".txt.gz")):
            for blank, block in itertools.groupby(
                (line for _, line in _lines(name)), key=lambda line: not line.strip()
            ):
                if not blank:
                    yield {"text": "".join(block)}
        elif len(found) == 1:
            raise TextError(f"'{name}' is none of .jsonl, .jsonl.gz, .parquet, .txt, .txt.gz.")


def _lines(name: str) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, from 1 on."""
    n = 0
    with _readable(name, lambda: f"after line {n}"):
        opened = gzip.open if name.endswith(".gz") else open
        # what is no UTF-8 becomes lone surrogates, so that the line is known
        with opened(name, "rt", encoding="utf-8-sig", errors="surrogateescape") as lines:
            for line in lines:
                n += 1
                if "\0" in line:
                    raise TextError(f"Line {n} of '{name}' holds NUL, as text in UTF-16 does: save the file in UTF-8.")
                if not _is_unicode(line):
                    raise TextError(f"Line {n} of '{name}' is not UTF-8, in which text is read: save the file in it.")
                yield n, line


def _is_unicode(line: str) -> bool:
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _parquet(name: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    n = 0
    with _readable(name, lambda: f"after row {n}"), pyarrow.parquet.ParquetFile(name) as content:
        for part in content.iter_batches():
            for row in part.to_pylist():
                n += 1
                yield row


@contextmanager
def _readable(name: str, where: Callable[[], str]) -> Iterator[None]:
    """Context in which a file is read. Raises TextError for one that is not whole, or not of the format of its name."""
    try:
        if is_pointer(name):
            raise TextError(f"'{name}' {POINTED}")
        yield
    except gzip.BadGzipFile as error:
        raise TextError(
            f"'{name}' is broken {where()}: {error}. Download it again, or name it as what it is."
        ) from error
    except EOFError as error:
        raise TextError(f"'{name}' is cut off {where()}: download it again.") from error
    except TextError:
        raise
    # pyarrow's own errors are ValueErrors or OSErrors
    except (OSError, ValueError, RuntimeError, zlib.error) as error:
        words = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise TextError(f"'{name}' cannot be read {where()}: {words}. Download or save it again.") from error


def _parsed(line: str, name: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise TextError(f"Line {number} of '{name}' is not JSON: {error.msg} at character {error.pos}.") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, too many brackets in one another
        raise TextError(f"Line {number} of '{name}' cannot be read as JSON: {str(error).split(';')[0]}.") from error
    if not isinstance(row, dict):
        raise TextError(
            f"Line {number} of '{name}' is {line.strip()[:40]}, where an object with columns belongs, such as "
            '{"prompt": "...", "response": "..."}.'
        )
    return row


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
