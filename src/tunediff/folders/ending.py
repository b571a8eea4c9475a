"""The files of a run that no entry of its manifest is for, since they go on changing: what they were when the run ended.

    manifest.json   "ended": {"state.json": [its bytes, the sha256 of these], "run.log": ..., ".hydra/config.yaml": ...}

A log may have grown since; what stood in it then stands there still. Locks say nothing of a run, checkpoints go once they are
not needed and have checksums of their own, and folders inside that have a manifest are runs of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from tunediff.files import opened
from tunediff.folders.manifest import COVERED, MANIFEST, listed, write_listing
from tunediff.shapes import Refused

NOTHING = {MANIFEST, "lock", "lock.soft", "owner.json", "checkpoints"}
PIECE = 2**20


def note_ended(folder: Path) -> None:
    """Writes down what the other files of a run are, now that it ended; what was written down before stays."""
    if (folder / MANIFEST).exists():
        listing = listed(folder)
        now = {name: _beginning(folder / name) for name in _others(folder) if name not in listing.ended}
        write_listing(folder, listing._replace(ended=now | listing.ended))


def changed_since(folder: Path) -> list[str]:
    """Names of the files that no longer begin with what stood in them when the run ended."""
    if not (folder / MANIFEST).exists():
        return []
    found = []
    for name, (size, digest) in listed(folder).ended.items():
        try:
            same = _beginning(folder / name, size) == (size, digest)
        except (OSError, ValueError, Refused):
            same = False
        found += [] if same else [name]
    return found


def _others(folder: Path) -> Iterator[str]:
    inside = {path.parent for path in folder.glob(f"*/{MANIFEST}")}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if name.parts[0] in COVERED | NOTHING or file.suffix == ".partial" or inside & {*file.parents}:
            continue
        if file.is_file() and not file.is_symlink():
            yield name.as_posix()


def _beginning(file: Path, size: int | None = None) -> tuple[int, str]:
    """The bytes of a file, or as many of its first, and their checksum."""
    state, read = hashlib.sha256(), 0
    with opened(file) as content:
        while piece := content.read(PIECE if size is None else min(PIECE, max(size - read, 0))):
            state.update(piece)
            read += len(piece)
    return read, state.hexdigest()
