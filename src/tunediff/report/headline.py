"""Findings -> what is said of a run first: the last line in the terminal, and its columns beside other runs.

Knows names and words only; what a number means stands in its finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tunediff.shapes import ROLES


class Words(NamedTuple):
    """How a finding is called at the head of a column, and in a line of which `tuned` may follow `base`; None where it is
    left out."""

    column: str | None
    line: str | None


TASK = "{task}"  # stands for any one
HEADLINE = {
    "replacement/kl_recovered": Words("KL rec.", "KL recovered"),
    f"adapter_recovery/{TASK}/accuracy/recovered_of_hybrid": Words(
        f"accuracy rec., {TASK}", f"accuracy recovered on {TASK}"
    ),
    "replacement/kl/adapter": Words("KL adapter", "KL of the adapter"),
    "replacement/l0": Words("L0 a layer", "L0 a layer"),
    "replacement/dead_fraction": Words("never fired", "never fired"),
    "fidelity/explained_variance/pooled": Words("EV", None),
    "fidelity/explained_variance/base": Words("EV base", "explained variance base"),
    "fidelity/explained_variance/tuned": Words("EV tuned", "explained variance tuned"),
    "fidelity/ce_recovered/base": Words("CE rec. base", "CE recovered base"),
    "fidelity/ce_recovered/tuned": Words("CE rec. tuned", "CE recovered tuned"),
    "fidelity/l0/mean": Words("L0", "L0"),
    "fidelity/dead_fraction": Words("dead", "dead"),
    "geometry/count/base_only": Words("base-only", "base-only"),
    "geometry/count/shared": Words("shared", "shared"),
    "geometry/count/tuned_only": Words("tuned-only", "tuned-only"),
    "latent_scaling/count/base_only": Words("confirmed base-only", None),
    "latent_scaling/count/tuned_only": Words("confirmed tuned-only", None),
    "layer_divergence/l2/largest": Words("largest distance", "largest distance"),
    "layer_divergence/l2/largest_layer": Words("at layer", "at layer"),
    "layer_divergence/cosine/smallest": Words(None, "smallest cosine"),
    "layer_divergence/cosine/smallest_layer": Words(None, "at layer"),
    "tokenizers/bits_per_byte/base/shared": Words(None, "bits per byte base"),
    "tokenizers/bits_per_byte/tuned/shared": Words(None, "bits per byte tuned"),
    "tokenizers/difference/pair": Words("bits a byte apart", "bits per byte, tuned tokenizer less base"),
    "stability/all": Words("stable", None),
    "stability/shared": Words("stable shared", None),
    "stability/base_only": Words("stable base-only", None),
    "stability/tuned_only": Words("stable tuned-only", None),
}


def line_of(findings: Mapping[str, Mapping[str, Any]]) -> str:
    """The line of a run: its findings by name, those that have a value. What both models have is named once."""
    said, before = [], ""
    for name, words in _told([name for name, finding in findings.items() if finding.get("value") is not None]):
        if words.line:
            measure, _, model = words.line.rpartition(" ")
            named = model if model in ROLES and measure == before else words.line
            said.append(f"{named} {findings[name]['value']:.4g}")
            before = measure
    return ", ".join(said)


def columns_of(members: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The columns that somebody has, without the pooled explained variance where all have that of both models."""
    names = list(dict.fromkeys(name for member in members for name in member["metrics"]))
    found = {name: words.column for name, words in _told(names) if words.column}
    pooled, *each = (f"fidelity/explained_variance/{place}" for place in ("pooled", "base", "tuned"))
    if all(name in member["metrics"] for name in each for member in members if pooled in member["metrics"]):
        found.pop(pooled, None)
    return found


def _told(names: Sequence[str]) -> Iterator[tuple[str, Words]]:
    """Those of the names that the headline has words for, in its order."""
    for pattern, words in HEADLINE.items():
        before, some, after = pattern.partition(TASK)
        for name in names:
            task = name[len(before) : len(name) - len(after)]
            if name == pattern or (some and name == f"{before}{task}{after}" and "/" not in task):
                yield name, Words(*(part and part.replace(TASK, task) for part in words))
