"""Names in settings -> files of this machine, and digests of them, which are part of what a study is.

Read here are the files that settings called path, file, adapter, transcoders, start and prompts name: of data and of tasks each byte, of a model's folder its configuration, tokenizer
and adapter files, and of weights in safetensors the header, the size and the beginning of every tensor: a model that was
trained again differs in all of its tensors, a single flipped bit would not be seen. Files up to WHOLE bytes are read whole.

What stands on the Hub has its commit in the settings themselves (hub.py). Not covered is what a program generates, such as the
toy language. Knows no torch.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import importlib.util
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

from tunediff.shapes import Refused

NAMES = ("path", "file", "adapter", "transcoders", "start", "prompts")  # settings whose values name files or folders
MODEL = (
    "*.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "*.model",
    "*.tiktoken",
    "vocab.txt",
    "merges.txt",
    "*.safetensors",
)  # files of its folder
ROWS = {"read_hub": "**/*", "read_files": "*", "file": "*"}  # who reads rows -> the files of a folder that it reads
WEIGHTS = ".safetensors"
WHOLE = 2**26  # bytes of weights that are read whole
HEAD = 2**12  # bytes that are read of each tensor of larger ones
LONGEST_HEADER = 10**8  # bytes, as safetensors itself has it


def opened(path: str | Path) -> BufferedReader:
    """The bytes of a file, to be read. Raises Refused for a pipe, a socket or a device, which give bytes for ever or none, and
    OSError where there is no such file."""
    refuse_odd(path)
    return open(path, "rb", opener=_at_once)


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # also of a pipe that came meanwhile


def refuse_odd(path: str | Path) -> None:
    """Raises Refused for what is neither a file nor a folder, and for such a thing below a folder."""
    found = [path, *(os.path.join(top, name) for top, _, names in os.walk(path) for name in names)]
    for place in found:
        try:
            kind = os.stat(place).st_mode
        except (OSError, ValueError):  # it is not there: whoever reads it says so
            continue
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise Refused(f"{place} is a pipe, a socket or a device, and only files are read: put a file in its place.")


def files_at(path: str | Sequence[str]) -> list[str]:
    """The files of a path, a folder, a pattern or a list of these, in the order in which they are read; none of an entry at
    which there is no file. A name with brackets that exists is no pattern."""
    found: list[str] = []
    for entry in [path] if isinstance(path, str) else path:
        entry = os.path.expanduser(entry)
        if os.path.isfile(entry):
            found.append(entry)
        else:
            pattern = os.path.join(glob.escape(entry), "*") if os.path.isdir(entry) else entry
            found += sorted(name for name in glob.glob(pattern) if os.path.isfile(name))
    return found


def of_settings(settings: Any, path: str = "") -> dict[str, str]:
    """Digests by the names of the settings, such as text.rows.path; none of what is not there."""
    found: dict[str, str] = {}
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            place = f"{path}.{key}" if path else str(key)
            if key in NAMES and (names := _names(value)):
                digest = of_files(names, ROWS.get(str(settings.get("_target_")).rpartition(".")[2], ROWS.get(key)))
                found |= {} if digest is None else {place: digest}
            else:
                found |= of_settings(value, place)
    elif isinstance(settings, list):
        for n, value in enumerate(settings):
            found |= of_settings(value, f"{path}.{n}")
    return found


def _names(value: Any) -> list[str]:
    """The names of files that a value may be: a string or a list of them."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(name, str) for name in values):
        return []
    return [name for name in values if 0 < len(name) < 4096 and "\n" not in name and set(name) != {"?"}]


def of_files(names: list[str], rows: str | None = None) -> str | None:
    """A digest of twelve digits of all files that some names, folders or patterns stand for; None where there is none. Of a
    folder with rows those of the pattern `rows`; of another the files of a model, or all where it holds none."""
    state, any_at_all = hashlib.sha256(), False
    for name in names:
        for label, file in _files(name, rows):
            try:
                content = of_file(file)
            except OSError:  # whoever reads it says so
                continue
            any_at_all = True
            state.update(f"{label}\0{content}\n".encode(errors="surrogateescape"))
    return state.hexdigest()[:12] if any_at_all else None


def _files(name: str, rows: str | None) -> Iterator[tuple[str, str]]:
    """The files of a name, each with its own within it."""
    try:
        place = Path(located(name))
        if place.is_dir():
            if rows is None:
                place = place / "dictionary" if (place / "dictionary").is_dir() else place  # of a run, its dictionary
                files = {file for pattern in MODEL for file in place.glob(pattern)}
            if rows or not any(file.suffix == WEIGHTS or file.name == "config.json" for file in files):
                files = {file for file in place.glob(rows or "*") if not _hidden(file.relative_to(place))}
            yield from sorted((str(file.relative_to(place)), str(file)) for file in files if file.is_file())
        else:
            yield from ((os.path.basename(file), file) for file in files_at(name))
    except (OSError, ValueError):  # no permission; no name of a file
        return


def _hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def located(name: str) -> str:
    """The path of a name, a Hub id as it stands; of pkg://package/folder that in an installed package, which is not imported."""
    if not name.startswith("pkg://"):
        return os.path.expanduser(name)
    package, _, folder = name.removeprefix("pkg://").partition("/")
    top, *inside = package.split(".")  # of a name with a dot Python would import what stands before it
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        found = None
    places = [os.path.join(place, *inside) for place in (found and found.submodule_search_locations) or ()]
    place = next((place for place in places if os.path.isdir(place)), None)
    return os.path.join(place, folder) if place else name


def of_file(file: str) -> str:
    """The digest of a file, which is read once for each size and time of change. Raises OSError."""
    status = os.stat(file)
    return _of_file(file, status.st_size, status.st_mtime_ns)


@functools.cache
def _of_file(file: str, size: int, _changed: int) -> str:
    with opened(file) as content:
        if file.endswith(WEIGHTS) and size > WHOLE:
            state = hashlib.sha256(f"{size}".encode())
            length = content.read(8)
            header = content.read(min(int.from_bytes(length, "little"), LONGEST_HEADER))
            state.update(length + header)
            for offset in _offsets(header):
                content.seek(8 + len(header) + offset)
                state.update(content.read(HEAD))
            return state.hexdigest()
        return hashlib.file_digest(content, "sha256").hexdigest()


def _offsets(header: bytes) -> list[int]:
    """Places at which the tensors begin, behind the header of a file in safetensors; none of a header that is broken."""
    try:
        entries = json.loads(header)
        return sorted({int(one["data_offsets"][0]) for name, one in entries.items() if name != "__metadata__"})
    except (ValueError, TypeError, LookupError, AttributeError):
        return []
