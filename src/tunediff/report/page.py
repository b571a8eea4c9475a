"""A run folder -> report.html: one file that opens from disk, without server or network.

Python gathers what findings.json and the tables say into one JSON payload; page.js builds the page from it. Nothing of
the data is ever parsed as HTML.
"""

from __future__ import annotations

import html
import importlib.resources
import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet

from tunediff.folders import write_atomically

LATENTS_EACH_END, LABEL_LATENTS, FREQUENT_LATENTS = 20, 5, 15
CURVE_POINTS = 300


def write_report(folder: Path) -> Path:
    """Writes folder/report.html atomically and returns its path. A missing table leaves its part out, in words."""
    found = json.loads((folder / "findings.json").read_text())
    latents, examples = (read_table(folder, name) for name in ("latents", "examples"))
    if latents:  # an evaluation alone may bring its own column and no other
        latents.setdefault("latent", list(range(len(next(iter(latents.values()))))))
    shown = chosen_latents(latents) if latents else []
    payload = {
        **found,
        "folder": folder.name,
        "training": thinned(read_table(folder, "training")),
        "latents": latents,
        "shown": shown,
        "examples": _examples_of(examples, set(shown)) if examples else None,
    }
    title = f"tunediff: {found['study'].get('model_pair', '')}"
    write_atomically(folder / "report.html", assemble(payload, title=title, script="page.js"))
    return folder / "report.html"


def assemble(payload: dict[str, Any], *, title: str, script: str) -> str:
    """The page as one text: its data, the style, what all pages draw with, and this page's own script."""
    parts = importlib.resources.files("tunediff.report")
    text = json.dumps(_finite(payload), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    pieces = {
        "TITLE": html.escape(title),
        "STYLE": (parts / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": "\n".join((parts / name).read_text(encoding="utf-8") for name in ("base.js", script)),
        # no closing tag and no comment can be spelled inside the script element
        "PAYLOAD": text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    }
    page = (parts / "page.html").read_text(encoding="utf-8")
    head, *rest = page.split("{{")
    return head + "".join(pieces[name] + tail for name, _, tail in (piece.partition("}}") for piece in rest))


def chosen_latents(columns: dict[str, list]) -> list[int]:
    """The latents whose examples travel in the page: both ends of the relative decoder norm, the best of each label,
    and the most frequent of the rest."""
    rates = columns.get("firing_rate") or [1.0] * len(columns["latent"])
    alive = [n for n, rate in enumerate(rates) if rate > 0]
    chosen: dict[int, None] = {}
    for label in (name for name in columns if name.startswith("auroc/")):
        ranked = sorted(alive, key=lambda n, label=label: -columns[label][n])
        chosen |= dict.fromkeys(ranked[:LABEL_LATENTS])
    if "relative_decoder_norm" in columns:
        ranked = sorted(alive, key=lambda n: columns["relative_decoder_norm"][n])
        chosen |= dict.fromkeys(ranked[:LATENTS_EACH_END] + ranked[::-1][:LATENTS_EACH_END])
    rest = [n for n in sorted(alive, key=lambda n: -rates[n]) if n not in chosen]
    return [columns["latent"][n] for n in (*chosen, *rest[:FREQUENT_LATENTS])]


def _examples_of(columns: dict[str, list], wanted: set[int]) -> dict[str, list]:
    grouped: dict[str, list] = {}
    for n, latent in enumerate(columns["latent"]):
        if latent in wanted:
            grouped.setdefault(str(latent), []).append(
                {name: values[n] for name, values in columns.items() if name != "latent"}
            )
    return grouped


def read_table(folder: Path, name: str) -> dict[str, list] | None:
    path = folder / "tables" / f"{name}.parquet"
    return pyarrow.parquet.read_table(path).to_pydict() if path.exists() else None


def thinned(columns: dict[str, list] | None, points: int = CURVE_POINTS) -> dict[str, list] | None:
    """At most `points` points of each curve, the last among them."""
    if columns is None:
        return None
    length = len(columns["step"])
    every = max(1, math.ceil(length / points))
    kept = sorted({*range(0, length, every), length - 1})
    return {name: [values[n] for n in kept] for name, values in columns.items()}


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not a finite number is null. Floats keep five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return value
