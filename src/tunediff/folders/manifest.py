"""Files that are written whole, and read as they were written: what else is found is refused in a sentence.

    manifest.json   in a run folder: {"files": {"tables/latents.parquet": its sha256, ...}, "sha256": of that itself}

A run begins its manifest with its first file. The entry of a file is taken out before the file is replaced, and its name stands
under "changing" until the new one is written, so that a process that is killed leaves a file without an entry and never a wrong
one. A file without an entry is read as it is: in a run of a version that had no manifests, or in one that was interrupted. One
whose name is not under "changing" either was added by somebody else. Of outputs/*.jsonl, which grow by a line with each response,
the entry is taken out with the first new line and put back once the evaluation has ended (`begin_growing`, `settle`); each line
has a checksum of its own as well. What else lies in the folder of a run that ended, such as state.json and run.log, is in no
entry, since it goes on changing: ending.py says what it was. JSON of `write_sealed` (state.json, sweep.json, group.json, of
checkpoints and stored activations) also carries its own checksum, in a key "sha256".
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tunediff.files import opened, refuse_odd
from tunediff.shapes import Refused

MANIFEST, SEAL = "manifest.json", "sha256"
# what a run folder's manifest lists: files, and folders with all that lies in them
COVERED = set(
    "config.yaml identity.json claims.json pair.yaml findings.json figures.json report.html "
    "direction.safetensors watched.safetensors dictionary companions tables latent_cache graphs directions model outputs".split()
)
DEPTH = 3  # folders between a manifest and the file furthest below it
EVALUATED = {
    "findings.json",
    "figures.json",
    "report.html",
    "tables",
    "latent_cache",
    "graphs",
    "directions",
    "outputs",
}
DENIED = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
os.umask(UMASK := os.umask(0o077))  # can only be read by setting it


# -- writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context with the temporary name of a file, which is flushed and takes the place of `path` once it is whole, in the
    manifest as well."""
    with changing(path), put(path) as partial:
        yield partial


@contextlib.contextmanager
def put(path: Path) -> Iterator[Path]:
    """The same for a file that no manifest lists, or inside `changing`."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o666 & ~UMASK)  # as any file of the user's: a library may keep its own to itself
        os.replace(partial, path)
        flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def flush(folder: Path) -> None:
    """Brings the names in a folder to the disk, where its file system can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_atomically(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON with its own checksum, which `read_json` compares."""
    plain = json.loads(json.dumps(content))
    with put(path) as partial:
        partial.write_text(json.dumps({**plain, SEAL: _seal(plain)}, indent=1), encoding="utf-8")


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def begin_manifest(folder: Path) -> None:
    """Begins the manifest of a run folder: what lies in it is not the run's."""
    write_sealed(folder / MANIFEST, {"files": {}})


@contextlib.contextmanager
def changing(*paths: Path) -> Iterator[None]:
    """Context in which these files, or whatever lies in these folders, all of one run, are written or removed."""
    homes = (home_of(path) for path in paths)
    home = next((home for home in homes if home is not None), None)
    if home is None:
        yield
        return
    files, cut, ended = listed(home)
    names = [path.absolute().relative_to(home).as_posix() for path in paths]
    before = {name: files.pop(name) for name in list(files) if _lies_in(name, names)}
    write_listing(home, Listing(files, sorted({*cut, *names}), ended))
    whole = False
    try:
        yield
        whole = True
    finally:
        there = [file for path in paths for file in _files(path.absolute()) if home_of(file) == home]
        found = {file.relative_to(home).as_posix(): digest_of(file) for file in there}
        kept = {name: now for name, now in found.items() if whole or before.get(name) == now}
        with contextlib.nullcontext() if whole else contextlib.suppress(OSError):
            files, cut, ended = listed(home)  # with what was written inside this context
            cut = [name for name in cut if not _lies_in(name, names)] + [name for name in found if name not in kept]
            write_listing(home, Listing(files | kept, cut, ended))


def begin_growing(path: Path) -> None:
    """Takes the entry of a file out to which lines are added from now on."""
    if (home := home_of(path)) is None:
        return
    files, cut, ended = listed(home)
    name = path.absolute().relative_to(home).as_posix()
    if name in files or name not in cut:
        files.pop(name, None)
        write_listing(home, Listing(files, sorted({*cut, name}), ended))


def settle(folder: Path) -> None:
    """Puts the entries of the files back, in a run folder, that had lines added to them."""
    grown = (
        [name for name in listed(folder).changing if name.startswith("outputs/")]
        if (folder / MANIFEST).exists()
        else []
    )
    if grown:
        with changing(*(folder / name for name in grown)):
            pass


def _lies_in(name: str, places: Iterable[str]) -> bool:
    return any(f"{name}/".startswith(f"{place}/") for place in places)


def _files(path: Path) -> list[Path]:
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in found if file.is_file() and not file.name.endswith(".partial")]


# -- reading ---------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """The content of the file; empty where it does not exist. Raises Refused for what is not as it was written."""
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return {}
    with as_written(path):
        found = json.loads(content.decode())
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        seal = found.pop(SEAL, None)
        if seal is not None and seal != _seal(found):
            raise ValueError("its checksum is another")
    return found


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises Refused where the manifest has another checksum, and FileNotFoundError."""
    content = b""

    def digest() -> str:
        nonlocal content
        with opened(path) as file:
            content = file.read()
        return hashlib.sha256(content).hexdigest()

    _compare(path, digest)
    return content


def verify(path: Path) -> None:
    """Reads a file that may be large, or the files of a folder, as far as the manifest lists them. Raises Refused where a
    checksum is another, and for what is no file."""
    refuse_odd(path)
    for file in _files(path):
        if entry_of(file) is not None:
            _compare(file, functools.partial(digest_of, file))


def remove_partial(folder: Path) -> None:
    """Removes what a process that was killed while it wrote has left below a folder that this process holds."""
    for left in folder.rglob("*.partial"):
        left.unlink(missing_ok=True)


NEEDED = ("config.yaml", "findings.json", "dictionary/", "companions/", "model/")


def gone_from(folder: Path) -> list[str]:
    """Reads every file that the manifest of a run lists; returns the names of those that are gone. Raises Refused for one that
    is not as it was written."""
    files = entries(folder) if (folder / MANIFEST).exists() else {}
    for name in files:
        verify(folder / name)
    return [name for name in files if not (folder / name).exists()]


def added_to(folder: Path) -> list[str]:
    """Names of the files that lie where a run's do, and that its manifest does not list: somebody else wrote them. One whose
    writing was cut off is the run's own."""
    if not (folder / MANIFEST).exists():
        return []
    files, cut, _ = listed(folder)
    home = folder.absolute()
    there = [file for top in sorted(COVERED) for file in _files(home / top) if home_of(file) == home]
    names = [file.relative_to(home).as_posix() for file in there]
    return [name for name in names if name not in files and not _lies_in(name, cut)]


def check_whole(folder: Path) -> None:
    """Raises Refused for a run of which a file is not as it was written, or a file is gone that a finished run is made of."""
    for name in gone_from(folder):
        if name.startswith(NEEDED):
            raise Refused(f"{folder / name} is gone. {_way_out(folder / name)}")


def _compare(path: Path, digest: Any) -> None:
    expected = entry_of(path)
    with as_written(path):
        found = digest()
        while expected is not None and found != expected:
            again = entry_of(path)
            if again == expected:
                raise ValueError(f"its checksum is not the one of {MANIFEST}")
            expected, found = again, digest()  # an evaluation replaced it meanwhile


@contextlib.contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Context that reads a file, or takes apart what it said. Raises Refused, naming the file and the way out, where it
    cannot be taken apart or may not be read; other errors of the system stay, such as FileNotFoundError."""
    try:
        yield
    except Refused:
        raise
    except OSError as error:
        if error.errno in DENIED:
            raise Refused(
                f"{path} cannot be read: {error.strerror}. Ask for permission, or {_other_way(path)}"
            ) from error
        if error.errno is not None:  # it is not there, or the machine is at fault
            raise
        raise Refused(_rotten(path, error)) from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise Refused(_rotten(path, error)) from error


def _rotten(path: Path, error: Exception) -> str:
    why = f"it has no {error}" if isinstance(error, LookupError) else str(error) or type(error).__name__
    return f"{path} is not as it was written: {why.splitlines()[0][:160]}. {_way_out(path)}"


def _other_way(path: Path) -> str:
    said = _way_out(path)
    return said[0].lower() + said[1:]


def _way_out(path: Path) -> str:
    home = home_of(path) or path.absolute().parent
    first = path.absolute().relative_to(home).parts[0]
    if path.name == MANIFEST:
        return "Restore it from a copy, or remove it: the files beside it are then read unchecked."
    if path.name == "state.json":
        return "Remove it: the same command goes on from the last checkpoint, or begins the run anew."
    if path.name in ("sweep.json", "group.json"):
        return "Remove it: the same command writes it anew."
    if first == "model":
        return f"Restore it from a copy, or remove {home} and fine-tune again. A model that you changed has its place elsewhere."
    if first in EVALUATED:
        apart = re.fullmatch(r"on_(\d+)_tokens", home.name)  # a folder inside that of the run
        run = f"{home.parent} tokens={apart[1]}" if apart else f"{home}"
        return f"Restore it from a copy, or remove it and ask every evaluation again that it had: python evaluate.py run={run} evaluation=[...]."
    return f"Restore it from a copy, or remove {home} and run the study again."


def home_of(path: Path) -> Path | None:
    """The absolute run folder whose manifest covers a file; None where there is none."""
    here = path.absolute()
    for folder in list(here.parents)[:DEPTH]:
        if (folder / MANIFEST).exists():
            return folder if here.relative_to(folder).parts[0] in COVERED and path.suffix != ".md" else None
    return None


def entries(folder: Path) -> dict[str, str]:
    """The checksums of a run's files by name, as its manifest has them. Raises Refused where that is not whole."""
    return listed(folder).files


class Listing(NamedTuple):
    """The content of a manifest: checksums by the names of files, the names of what was being written or removed, and by name
    the bytes of other files when the run ended, with the checksum of these."""

    files: dict[str, str]
    changing: list[str] = []
    ended: dict[str, tuple[int, str]] = {}


def listed(folder: Path) -> Listing:
    """The manifest of a run folder. Raises Refused where it is not whole."""
    path = folder / MANIFEST
    with as_written(path):
        content = read_json(path)
        files, cut = content["files"], content.get("changing", [])
        if not all(isinstance(word, str) for word in (*files.keys(), *files.values(), *cut)):
            raise ValueError("it is no list of checksums")
        ended = {name: (int(size), str(digest)) for name, (size, digest) in content.get("ended", {}).items()}
    return Listing(files, cut, ended)


def write_listing(folder: Path, listing: Listing) -> None:
    write_sealed(folder / MANIFEST, {name: said for name, said in listing._asdict().items() if said or name == "files"})


def entry_of(path: Path) -> str | None:
    home = home_of(path)
    return None if home is None else entries(home).get(path.absolute().relative_to(home).as_posix())


def digest_of(path: Path) -> str:
    """The sha256 of a file, read in pieces."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
