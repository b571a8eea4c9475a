"""Local files and the Hub -> rows: dictionaries of a data set's own columns. Nothing is read before it is asked for.

A row knows its place, so that whatever is wrong with it, here or further on, is said with its file and number.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunediff.files import files_at, opened, refuse_odd
from tunediff.hub import is_commit
from tunediff.shapes import Refused

POINTER = b"version https://git-lfs"  # how a file of a few lines begins that Git leaves in place of a large one
POINTED = (
    "is a pointer of git-LFS, not the file itself. Run `git lfs pull` in the folder, or download it with `hf download`."
)
LINES, TEXTS = (".jsonl", ".jsonl.gz"), (".txt", ".txt.gz")
READ = (*LINES, ".parquet", *TEXTS)
# endings of files that hold rows too, in a form that is not read
UNREAD = re.compile(
    r"\.(?:json|ndjson|csv|tsv|arrow|feather|avro|orc|h5|pkl|xlsx?|(?:jsonl|txt|parquet|json|csv)\.\w+)$"
)
ABOUT = re.compile(r"(?:dataset_infos?|dataset_dict|state|metadata|card|README)\.json$")  # what stands beside rows
HALF = re.compile(r"[\ud800-\udfff]")  # of a pair of surrogates, as a file that was cut badly has it
LONGEST = 2**26  # characters of one line, or of one document of a .txt


class TextError(Refused):
    """A data set, tokenizer or pair of tokenizers that cannot be used; the message says why and what to do."""

    def __init__(self, message: str):
        # what data says may hold half characters, which no terminal takes, and commands, which one obeys
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class BadRow(TextError):
    """One row that cannot be read, or all that stand behind a break in a file: whoever reads may go on behind it."""

    def __init__(self, place: str, reason: str):
        super().__init__(f"{place} {reason}")
        self.place = place


class Placed(dict[str, Any]):
    """A row that knows its place in words, such as "Line 3 of 'a.jsonl'", and whether its file is on this machine."""

    def __init__(self, row: Mapping[str, Any], place: str, *, here: bool = True):
        super().__init__(row)
        self.place, self.here = place, here


def is_pointer(file: str | Path) -> bool:
    """True where Git left a pointer in a file's place."""
    with opened(file) as content:
        return content.read(len(POINTER)) == POINTER


def read_files(path: str | Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of local files, in the order of their names: .jsonl, .jsonl.gz, .parquet, and .txt or .txt.gz whose
    documents are separated by blank lines. `path` is a file, a folder, a pattern or a list of these. Raises TextError for
    files that are none, and BadRow for a row that cannot be read; asked again it goes on behind that."""
    return _Raised(_rows(path))


class _Raised(Iterator[dict[str, Any]]):
    """The rows of a generator, which raises those that are bad; it would end where it raised them itself."""

    def __init__(self, rows: Iterator[dict[str, Any] | BadRow]):
        self.rows = rows

    def __next__(self) -> dict[str, Any]:
        row = next(self.rows)
        if isinstance(row, BadRow):
            raise row
        return row


def _rows(path: str | Sequence[str]) -> Iterator[dict[str, Any] | BadRow]:
    wanted = [path] if isinstance(path, str) else list(path)
    for entry in wanted:
        if not files_at(entry):
            raise TextError(f"No file at '{entry}'. Give an existing file, folder or pattern.")
    found = files_at(wanted)
    if not any(name.endswith(READ) for name in found):
        raise TextError(f"No file at '{path}' is one of {', '.join(READ)}: there are {', '.join(found)[:200]}.")
    for name in found:
        _refuse_unread(name)
    for name in found:
        if name.endswith(LINES):
            yield from _json_lines(name)
        elif name.endswith(".parquet"):
            yield from _parquet(name)
        elif name.endswith(TEXTS):
            yield from _documents(name)


def _refuse_unread(name: str) -> None:
    """Raises TextError for a file of another form than its name says, as far as its first and last bytes tell, and for one
    with rows in a form that is not read: nothing is passed over unsaid."""
    if not name.endswith(READ):
        if UNREAD.search(name) and not ABOUT.search(name):
            raise TextError(
                f"'{name}' stands beside the files that are read and is none of {', '.join(READ)}: save its rows as one of "
                "these, or name what is read with a pattern such as folder/*.jsonl."
            )
        return
    try:
        with opened(name) as content:
            first = content.read(len(POINTER))
            size = content.seek(0, os.SEEK_END)
            content.seek(max(0, size - 4))
            last = content.read(4)
    except OSError as error:
        raise TextError(
            f"'{name}' cannot be read: {error.strerror}. Give yourself permission, or another file."
        ) from error
    if first == POINTER:
        raise TextError(f"'{name}' {POINTED}")
    if name.endswith(".gz") and first and first[:2] != b"\x1f\x8b":
        raise TextError(
            f"'{name}' is broken after line 0: Not a gzipped file ({first[:2]!r}). Download it again, or name it as what it is."
        )
    if name.endswith(".parquet") and not first[:4] == last == b"PAR1":
        raise TextError(
            f"'{name}' cannot be read after row 0: it does not begin and end as a parquet file does, so it is cut or another "
            "format. Download or save it again."
        )
    if not name.endswith((".gz", ".parquet")) and first[:2] == b"\x1f\x8b":
        raise TextError(f"'{name}' is compressed by gzip: name it '{name}.gz'.")


def _lines(name: str) -> Iterator[tuple[int, str | BadRow]]:
    """The lines of a file with their numbers, from 1 on; in place of one that cannot be read the reason. A line that is too
    long is not held whole."""
    n = 0
    unpacked = gzip.open if name.endswith(".gz") else open
    # what is no UTF-8 becomes lone surrogates, so that the line is known
    with _readable(name) as broken, unpacked(name, "rt", encoding="utf-8-sig", errors="surrogateescape") as lines:
        while line := lines.readline(LONGEST):
            n += 1
            place = f"Line {n} of '{name}'"
            if len(line) == LONGEST and not line.endswith("\n"):
                while (rest := lines.readline(LONGEST)) and not rest.endswith("\n"):
                    pass
                yield n, BadRow(place, f"has more than {LONGEST:,} characters: cut it into several rows.")
            elif "\0" in line:
                yield n, BadRow(place, "holds NUL, as text in UTF-16 does: save the file in UTF-8.")
            elif HALF.search(line):
                yield n, BadRow(place, "is not UTF-8, in which text is read: save the file in it.")
            else:
                yield n, line
    if broken:
        yield n + 1, BadRow(f"'{name}'", broken[0].replace("{where}", f"after line {n}"))


def _json_lines(name: str) -> Iterator[dict[str, Any] | BadRow]:
    for n, line in _lines(name):
        if isinstance(line, BadRow):
            yield line
        elif line.strip():
            yield _parsed(line, f"Line {n} of '{name}'")


def _documents(name: str) -> Iterator[dict[str, Any] | BadRow]:
    """The documents of a .txt between its blank lines."""
    for blank, block in itertools.groupby(
        _lines(name), key=lambda line: isinstance(line[1], str) and not line[1].strip()
    ):
        if blank:
            continue
        parts: list[str] = []
        first, size, bad = 0, 0, None
        for n, line in block:
            first = first or n
            if isinstance(line, BadRow):
                bad = bad or line
            elif (size := size + len(line)) <= LONGEST:
                parts.append(line)
        place = f"The document at line {first} of '{name}'"
        if size > LONGEST:
            bad = bad or BadRow(place, f"has more than {LONGEST:,} characters: part it by blank lines.")
        yield bad or Placed({"text": "".join(parts)}, place)


def _parquet(name: str) -> Iterator[dict[str, Any] | BadRow]:
    import pyarrow.parquet

    n = 0
    with _readable(name) as broken, pyarrow.parquet.ParquetFile(name) as content:
        for part in content.iter_batches(batch_size=1024):
            for row in part.to_pylist():
                n += 1
                yield Placed(row, f"Row {n} of '{name}'")
    if broken:
        yield BadRow(f"'{name}'", broken[0].replace("{where}", f"after row {n}"))


@contextmanager
def _readable(name: str) -> Iterator[list[str]]:
    """Context in which a file is read. One that cannot be read on puts the reason into the list, with a place for {where}."""
    broken: list[str] = []
    try:
        yield broken
    except gzip.BadGzipFile as error:
        broken.append(f"is broken {{where}}: {_said(error)}. Download it again, or name it as what it is.")
    except EOFError:
        broken.append("is cut off {where}: download it again.")
    # pyarrow's own errors are ValueErrors, OSErrors and MemoryErrors where a size is not what was written
    except (OSError, ValueError, RuntimeError, MemoryError, OverflowError, TypeError, LookupError, zlib.error) as error:
        broken.append(f"cannot be read {{where}}: {_said(error)}. Download or save it again.")


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")[:200]


def _parsed(line: str, place: str) -> dict[str, Any] | BadRow:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return BadRow(place, f"is not JSON: {error.msg} at character {error.pos}.")
    except (ValueError, RecursionError) as error:  # a number of too many digits, too many brackets in one another
        return BadRow(place, f"cannot be read as JSON: {str(error).split(';')[0]}.")
    if not isinstance(row, dict):
        return BadRow(
            place,
            f"is {line.strip()[:40]}, where an object with columns belongs, such as "
            '{"prompt": "...", "response": "..."}.',
        )
    return Placed(row, place)


# of a card, the part that says which files are read
CONFIGS = re.compile(r"""^["']?configs["']?\s*:.*?(?=^[^\s-]|\Z)""", re.MULTILINE | re.DOTALL)


def _refuse_elsewhere(folder: Path) -> None:
    """Raises TextError for a local data set whose card names files that are not in its folder: of another host they would be
    asked for, and elsewhere on this machine they are none of what it is. Raises Refused for what is no file in it."""
    refuse_odd(folder)
    for card in (folder / "README.md", folder / ".huggingface.yaml"):
        try:
            with opened(card) as file:
                content = file.read(2**20).decode(errors="replace")
        except OSError:
            continue
        for word in re.findall(r"[^\s'\",\[\]{}]+", " ".join(CONFIGS.findall(content))):
            hidden = "\\" in word or re.match(
                r"\*\w", word
            )  # an escape, or an alias of what stands elsewhere in the card
            if "://" in word or hidden or word.startswith(("/", "~")) or ".." in word.split("/"):
                raise TextError(f"{card} names files that are elsewhere, {word:.80}: put them into its folder.")


def read_hub(
    path: str, *, name: str | None = None, split: str = "train", revision: str | None = None, streaming: bool = True
) -> Iterator[dict[str, Any]]:
    """Rows of a data set on the Hugging Face Hub, or of a local copy in its format. Raises TextError for what cannot be read,
    and where only another commit is at hand than `revision` says."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    n = 0
    if os.path.isdir(path):
        _refuse_elsewhere(Path(path))
    try:
        found = datasets.load_dataset_builder(path, name, revision=revision)
        latest = found.hash  # that was ever prepared, where there is no network
        if is_commit(revision) and is_commit(latest) and latest != revision:
            raise TextError(
                f"The data set '{path}' is here at commit {latest}, and not at {revision}, at which it is to be read: bring it "
                "where there is a network."
            )
        if not streaming:
            found.download_and_prepare()
        rows: Any = found.as_streaming_dataset(split=split) if streaming else found.as_dataset(split=split)
        for row in rows:
            n += 1
            yield Placed(dict(row), f"Row {n} of '{path}'", here=os.path.isdir(path))
    except TextError:
        raise
    except (ConnectionError, OSError, DatasetNotFoundError) as error:
        if n:
            raise TextError(f"'{path}' cannot be read after row {n}: {_said(error)}. Start again to go on.") from error
        raise TextError(
            f"Cannot load the data set '{path}': no such local copy, and the Hub was not reached ({type(error).__name__}). "
            f"Download it where there is a network and read it with text.rows._target_=tunediff.text.read_files "
            f"text.rows.path=<its jsonl or parquet files>; the problems of a task with task.<name>.file=<the files>."
        ) from error
    except (
        ValueError,
        RuntimeError,
        DatasetsError,
    ) as error:  # a name, a split or a file that is not as its data set says
        raise TextError(f"'{path}' cannot be read after row {n}: {_said(error)}.") from error
