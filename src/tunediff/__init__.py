"""tunediff shows what fine-tuning changed inside a language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.shapes import VERSION as __version__

if TYPE_CHECKING:
    from tunediff.study.finished import Loaded

__all__ = ["__version__", "load"]


def load(run: str | Path) -> Loaded:
    """A finished run by its folder: its dictionary, pair, text, findings and tables."""
    from tunediff.study.finished import Loaded

    return Loaded(Path(run))
