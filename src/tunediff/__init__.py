"""tunediff shows what fine-tuning changed inside a language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.shapes import VERSION as __version__

if TYPE_CHECKING:
    from tunediff.study.finished import Loaded

__all__ = ["__version__", "load"]


def load(run: str | Path, *, trust: Sequence[str] = ()) -> Loaded:
    """A finished run by its folder: its dictionary, pair, text, findings and tables. A folder is data: its config builds
    this package's own classes, and those of packages that are named in `trust`; env:NAME lets it read that environment
    variable."""
    from tunediff.study.finished import Loaded

    return Loaded(Path(run), trust)
