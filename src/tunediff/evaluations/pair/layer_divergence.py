"""Distance of the two models at every layer, without any dictionary, which tells where to train one.

l2        mean over held-out tokens of |h_base - h_tuned|_2, in the models' own units
cosine    mean over held-out tokens of the cosine of h_base and h_tuned
norm_*    mean over held-out tokens of |h|_2 of each model: a distance says little without it

h is the residual stream that leaves a layer (resid_post), before any final norm; layer -1 is what enters layer 0, the
output of the embedding. This is the divergence plot of the DeepScaleR study ("Diffing Reasoning Models on Math": 1,000
samples, 99 % intervals). Both models run once a batch and give all their layers; of each batch only sums remain. The
intervals take documents as clusters (measures/clustered.py): the published ones do not say what they count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tunediff.evaluations.given import Given, Needs, Work
from tunediff.measures.clustered import DocumentSums, number, ratio
from tunediff.models import ModelPair
from tunediff.shapes import ROLES, Figure, Finding, Note, Stream, Table

MEASURES = ("l2", "cosine", "norm_base", "norm_tuned")
MEANINGS = {
    "l2": "mean over tokens of |h_base - h_tuned|, in the models' own units",
    "cosine": "mean over tokens of the cosine of the two residual streams",
}


class LayerDivergence:
    """level   confidence level of the intervals"""

    needs = Needs.PAIR

    def __init__(self, *, level: float = 0.99):
        self.level = level

    def work(self, pair: ModelPair, streams: Sequence[Stream]) -> Work:
        """Both models, read to their last layers."""
        return Work(passes=2)

    def run(self, given: Given) -> Iterator[Finding | Table | Figure | Note]:
        pair = given.pair
        depths = {role: pair.depth(role) for role in ROLES}
        layers = list(range(-1, min(depths.values())))
        streams = pair.streams("resid_pre", 0, equal_widths=False)
        streams += pair.streams("resid_post", layers[1:], equal_widths=False)  # base, tuned, base, tuned, ...
        base, tuned = streams[:2]
        comparable = base.width == tuned.width
        if not comparable:
            yield Note(
                f"The residual streams have different widths (base {base.width}, tuned {tuned.width}): they have norms at "
                "every layer, but no distance and no cosine."
            )
        if len(set(depths.values())) > 1:
            yield Note(
                f"The models have different depths (base {depths['base']} layers, tuned {depths['tuned']}): layers of the "
                f"same number are compared, up to {layers[-1]}."
            )
        sums, tokens = self._sums(given, streams, comparable)
        estimate = ratio(sums, tokens[:, None, None])
        low, high = estimate.interval(self.level)
        columns: dict[str, list] = {"layer": layers}
        for n, name in enumerate(MEASURES):
            for part, values in (("", estimate.value), ("_low", low), ("_high", high)):
                known = comparable or name.startswith("norm")
                columns[name + part] = values[:, n].tolist() if known else [None] * len(layers)
        yield Table("layers", columns)
        yield from figures(columns)
        overflown = [layer for layer, value in zip(layers, estimate.value, strict=True) if not value.isfinite().all()]
        if overflown:
            yield Note(
                f"Layers {', '.join(map(str, overflown))} gave values that are not finite: half precision overflows there; "
                "measure with model_pair.base.dtype=bfloat16 model_pair.tuned.dtype=bfloat16, or float32."
            )
        elif comparable:
            how = f"{int(tokens.sum()):,} tokens of {len(tokens):,} documents; {self.level:.0%} interval over documents"
            for n, (name, word) in enumerate((("l2", "largest"), ("cosine", "smallest"))):
                values = estimate.value[:, n]
                at = int(values.argmax() if word == "largest" else values.argmin())
                meaning = f"{MEANINGS[name]}, at the layer where it is {word}; {how}"
                # heads of the columns that stand beside other runs
                heads = ("largest distance", "at layer") if name == "l2" else ("", "")
                ends = number(low[at, n]), number(high[at, n])
                line = heads[0] or f"{word} {name}"
                yield Finding(
                    f"layer_divergence/{name}/{word}", float(values[at]), *ends, meaning, heads[0], line, "documents"
                )
                meaning = f"that layer, counted from 0; -1 is the output of the embedding; the mean is {word} there"
                where = f"layer_divergence/{name}/{word}_layer"
                yield Finding(where, layers[at], meaning=meaning, column=heads[1], line="at layer")

    def _sums(self, given: Given, streams: list[Stream], comparable: bool) -> tuple[Tensor, Tensor]:
        """Sums over the tokens of each document [document, layer, measure] and their numbers [document], in float64."""
        sums = DocumentSums()
        for batch in given.batches("layers"):
            values = given.pair.read(batch, streams)
            measured = torch.stack([measures(b, t, comparable) for b, t in zip(values[::2], values[1::2], strict=True)])
            measured = torch.cat([measured, torch.ones_like(measured[:, :1])], dim=1)  # the last counts tokens
            sums.add(measured.permute(2, 0, 1).cpu().double(), batch.document)
        stacked = sums.stacked()
        return stacked[..., :-1], stacked[:, 0, -1]


def figures(columns: dict[str, list]) -> Iterator[Figure]:
    """Draws distance and cosine where the models can be compared, and the norms of both."""
    section = "Where the models differ, layer by layer"
    caption = (
        "Residual streams of the two models on the same held-out tokens. Bands: confidence intervals of the mean over documents, at the level that the findings name. Layer -1 "
        "is the output of the embedding."
    )
    names = [name for name in ("l2", "cosine") if columns[name][0] is not None]
    if names:
        yield Figure(
            "layer_divergence/apart",
            kind="lines",
            columns=columns,
            x="layer",
            y=names,
            section=section,
            title="Mean L2 distance",
            caption=caption,
            words={"l2": "Mean L2 distance", "cosine": "Mean cosine"},
        )
    norms = {"layer": columns["layer"] * 2, "model": [role for role in ROLES for _ in columns["layer"]]}
    norms |= {
        f"norm{end}": [v for role in ROLES for v in columns[f"norm_{role}{end}"]] for end in ("", "_low", "_high")
    }
    given = {"kind": "lines", "columns": norms, "x": "layer", "y": ["norm"], "section": section, "group": "model"}
    yield Figure("layer_divergence/norms", title="Mean norm", caption=caption, **given)


def measures(base: Tensor, tuned: Tensor, comparable: bool) -> Tensor:
    """The MEASURES [measure, token] of each token in float32, of the hidden vectors [token, width] of the two models; zero
    where the widths cannot be compared."""
    base = base.float()
    tuned = tuned.to(base)
    norms = torch.stack([base.norm(dim=-1), tuned.norm(dim=-1)])
    if not comparable:
        return torch.cat([torch.zeros_like(norms), norms])
    apart = torch.stack([(base - tuned).norm(dim=-1), cosine_similarity(base, tuned, dim=-1)])
    return torch.cat([apart, norms])
