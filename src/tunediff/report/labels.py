"""Findings on several labels -> what of them may be claimed together, and where a yardstick does as well as the best latent.

label_alignment/<label>/p_holm   Holm's adjusted p-value over the labels of the run: a label is found where it is at most 0.05
auroc_q/<label>                  of every latent, in the table of latents: Benjamini and Hochberg's over latents and labels
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tunediff.folders import columns_in, read_table
from tunediff.measures.shifts import claims, discoveries
from tunediff.shapes import Finding, Note, Table

LEVEL = 0.05
SAY_OF_LABELS = ("label_alignment", "probing")  # what a label's findings begin with
# what may do as well as the best latent, in words
YARDSTICKS = {
    "label_alignment/{}/bag_of_words": "a rule on the words before it",
    "label_alignment/{}/position": "a rule on the place in the document",
    "label_alignment/{}/untrained_dictionary": "a dictionary that was not trained",
    "label_alignment/{}/untrained_model": "models with permuted weights",
    "probing/{}/random_directions": "a random direction",
    "probing/{}/neurons": "a coordinate of the activations",
    "probing/{}/mean_difference": "the difference of means",
    "probing/{}/difference_pca": "a principal direction of tuned - base",
}


def labels_together(folder: Path, findings: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding | Table | Note]:
    """Yields what the labels of a run folder say together; nothing where no label was measured."""
    p_values = {
        name.split("/")[1]: found["value"]
        for name, found in findings.items()
        if name.startswith("label_alignment/") and name.endswith("/p") and found["value"] is not None
    }
    if not p_values:
        return
    adjusted = dict(zip(p_values, claims(list(p_values.values())), strict=True))
    for label, value in adjusted.items():
        meaning = (
            f"p of the label, adjusted by Holm over the {len(adjusted)} labels of this run; found at most {LEVEL:g}"
        )
        yield Finding(f"label_alignment/{label}/p_holm", value, meaning=meaning)
    yield Note(_found(adjusted))
    for label in adjusted:
        yield from _beaten(label, findings)
    yield from _latents(folder, list(adjusted))


def _found(adjusted: Mapping[str, float]) -> str:
    found = [label for label, value in adjusted.items() if value <= LEVEL]
    rest = [label for label in adjusted if label not in found]
    said = (
        "Labels that a latent tells better than it tells them shifted within documents, and better than those of like "
    )
    said += f"documents at the same places, at {LEVEL:.0%} over all {len(adjusted)} "
    said += f"(Holm): {', '.join(found) or 'none'}."
    return said + (f" Not found: {', '.join(rest)}." if rest else "")


def _beaten(label: str, findings: Mapping[str, Mapping[str, Any]]) -> Iterator[Note]:
    """Yields a sentence where something without a trained latent does as well."""
    best = findings[f"label_alignment/{label}/auroc"]["value"]
    at_most = {path.format(label): words for path, words in YARDSTICKS.items()}
    there = {words: findings[path] for path, words in at_most.items() if path in findings}
    there = {words: (one["value"], one["high"]) for words, one in there.items() if one["value"] is not None}

    def said(some: Mapping[str, tuple[float, float | None]]) -> str:
        ordered = sorted(some.items(), key=lambda one: -one[1][0])
        return ", ".join(f"{words} ({value:.3f})" for words, (value, _) in ordered)

    latent = f"The best latent for '{label}' (AUROC {best:.3f})"
    if as_good := {words: one for words, one in there.items() if one[0] >= best}:
        yield Note(f"{latent} deserves no name for it: as much is reached by {said(as_good)}.")
    if near := {words: one for words, one in there.items() if one[0] < best <= (one[1] or 0.0)}:
        yield Note(f"{latent} is not told apart by these documents from {said(near)}, whose interval reaches as far.")


def _latents(folder: Path, labels: list[str]) -> Iterator[Table]:
    """Yields the adjusted p-values of every latent."""
    path = folder / "tables" / "latents.parquet"
    there = columns_in(path)
    labels = [label for label in labels if f"auroc_p/{label}" in there]
    if not labels:
        return
    read = read_table(path, columns=["latent", *(f"auroc_p/{label}" for label in labels)])
    columns = [[1.0 if value is None else value for value in read[f"auroc_p/{label}"].to_pylist()] for label in labels]
    found = discoveries(torch.tensor(columns, dtype=torch.float64))
    adjusted = {f"auroc_q/{label}": values.tolist() for label, values in zip(labels, found, strict=True)}
    yield Table("latents", {"latent": read["latent"].to_pylist(), **adjusted})
