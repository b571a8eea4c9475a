"""Is a direction the same in both models, and at which layers? Its vectors are kept as files, one for each model.

    cosine        of the base-derived and the tuned-derived vector of a layer, from the same tokens (arXiv 2507.12638 says about
                  .74 at layer 10 of Llama-3.1-8B, by a second-hand reading of its figure)
    null          the same of events displaced at random within their documents, to any token, or to other events where these
                  are the reference: two models that share their origin agree on what any windows have in common, so that a
                  cosine far from 0 says little by itself
    length        of the vector, in mean lengths of the hidden vectors that it was read from: both are needed to steer as others did
    word_logits   the logits on the direct path of a unit vector, summed over the 15 largest whose token is one of the pair's
                  words of hesitation: of each model's vector through each model's unembedding (code of arXiv 2507.12638)

Intervals of cosines are over groups of questions (delete-a-group jackknife). Other directions than differences of means before
events have none, and their null, that of random vectors, is far below what two such models share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tunediff.claims import Number
from tunediff.directions import DifferenceOfMeans, Direction, RandomDirection, Source
from tunediff.directions.before_events import Measured
from tunediff.evaluations.given import Given, Needs, Work
from tunediff.folders import changing, make_folder
from tunediff.measures.clustered import Bounded, interval_columns, jackknifed
from tunediff.models import ModelPair, unembedding
from tunediff.shapes import BASE, ROLES, TUNED, Figure, Finding, Note, Refused, Stream, Table
from tunediff.text import Text
from tunediff.text.labels import words

GROUPS, TOP = 20, 15


class DirectionsByLayer:
    """direction   where it comes from      layers   layers; None: all that both models have
    layer       the one of these whose cosine, and what no draw of the null has of it, are findings by themselves; None: none
    draws       of displaced events, or of random vectors, which make the null          seed   of these"""

    needs = Needs.PAIR

    def __init__(
        self,
        *,
        direction: Source,
        layers: Sequence[int] | None = None,
        layer: int | None = None,
        draws: int = 20,
        seed: int = 0,
    ):
        if draws < 2:
            raise Refused(f"directions.draws={draws}: a null has at least 2 draws.")
        if layers is not None and (not layers or len({*layers}) < len(layers)):
            raise Refused(f"directions.layers={list(layers)}: give numbers of layers, each once, or null for all.")
        if layer is not None and layer not in (layers or [layer]):
            raise Refused(f"directions.layer={layer}: choose of directions.layers={list(layers or ())}.")
        self.direction, self.layers, self.layer, self.draws, self.seed = direction, layers, layer, draws, seed

    def check(self, pair: ModelPair, text: Text) -> None:
        """Raises Refused for layers that one of the models has not."""
        for layer in (*(self.layers or ()), *([] if self.layer is None else [self.layer])):
            if not 0 <= layer < min(pair.depth(role) for role in ROLES):
                raise Refused(
                    f"directions.layers={list(self.layers or [layer])}: both models have layers 0 to {min(map(pair.depth, ROLES)) - 1}."
                )

    def work(self, pair: ModelPair, streams: Sequence[Stream]) -> Work:
        """Both models, read to their last layers."""
        return Work(passes=2)

    def run(self, given: Given) -> Iterator[Finding | Table | Figure | Note]:
        pair = given.pair
        layers = list(self.layers) if self.layers is not None else list(range(min(map(pair.depth, ROLES))))
        measured: Measured | None = None
        if isinstance(self.direction, DifferenceOfMeans):
            measured = self.direction.measured(given, ROLES, layers, groups=GROUPS, draws=self.draws, seed=self.seed)
            found = {role: measured.direction(role) for role in ROLES}
            said = found[TUNED].provenance
            yield Note(
                f"directions: {said['events']:,} events '{self.direction.label}', {said['window_tokens']:,} tokens of their windows against "
                f"{said['reference_tokens']:,} of the reference"
                + (f"; the windows of {said['outside']:,} more begin before their text does" if said["outside"] else "")
            )
        else:
            found = {role: self.direction.find(given, role, layers) for role in ROLES}
        yield from _kept(given.folder, found)
        if len(found[BASE].at(layers[0])) != len(found[TUNED].at(layers[0])):
            yield Note("The models have vectors of different widths: there is no cosine of their directions.")
            return
        if measured is None and all(torch.equal(found[BASE].at(layer), found[TUNED].at(layer)) for layer in layers):
            yield Note("This direction is one vector for both models by the way it is found: its cosines say nothing.")
            return
        rows = [self._row(given, found, measured, n, layer) for n, layer in enumerate(layers)]
        table = Table.of("directions", rows)
        yield table
        yield from self._findings(rows, measured)
        yield Figure(
            "directions/cosine",
            kind="lines",
            columns=_long(table.columns),
            x="layer",
            y=["cosine"],
            section="One direction, found in either model",
            title="Cosine of the base-derived and the tuned-derived direction",
            caption="The same tokens read by both models. The band of the null holds 95 % of its draws: events displaced at random within "
            "their documents, or random vectors.",
            group="what",
            control="null",
        )

    def _row(
        self, given: Given, found: dict[str, Direction], measured: Measured | None, n: int, layer: int
    ) -> dict[str, Any]:
        vectors = {role: found[role].at(layer) for role in ROLES}
        bounded, draws = self._cosine(given, vectors, measured, n, layer)
        low, high = draws.quantile(0.025), draws.quantile(0.975)
        row = {"layer": layer, **interval_columns("cosine", bounded)}
        row |= {"null": float(draws.mean()), "null_low": float(low), "null_high": float(high)}
        row |= {f"length_{role}": float(vectors[role].norm()) for role in ROLES}
        logits = word_logits(given.pair, vectors)
        return row | {
            f"word_logits_{source}_through_{head}": logits[source, head] for source in ROLES for head in ROLES
        }

    def _cosine(
        self, given: Given, vectors: dict[str, Tensor], measured: Measured | None, n: int, layer: int
    ) -> tuple[Bounded, Tensor]:
        """The cosine with its interval, and those of the null [draw]."""
        if measured is None:
            value = float(cosine_similarity(vectors[BASE].double(), vectors[TUNED].double(), dim=0))
            drawn = [
                RandomDirection(seed=self.seed, draw=k).find(given, TUNED, [layer]).at(layer)
                for k in range(2 * self.draws)
            ]
            stacked = torch.stack(drawn)
            return (value, None, None), cosine_similarity(stacked[::2], stacked[1::2], dim=-1)
        base, tuned = (measured.sums[role][n] for role in ROLES)
        groups = [group for group in range(GROUPS) if base.counts[group].sum() > 0]
        without = torch.stack([cosine_similarity(base.difference(g), tuned.difference(g), dim=0) for g in groups])
        estimate = jackknifed(
            cosine_similarity(base.difference(), tuned.difference(), dim=0), without, base.counts[groups].sum(-1)
        )
        return estimate.bounded(least=-1.0, most=1.0), cosine_similarity(base.displaced(), tuned.displaced(), dim=-1)

    def _findings(self, rows: list[dict[str, Any]], measured: Measured | None) -> Iterator[Finding]:
        null = "events displaced at random" if measured is not None else "random vectors"
        for row in rows:
            meaning = (
                f"cosine of the base-derived and the tuned-derived direction at layer {row['layer']}; of {null} {row['null']:.2f}, 95 % of "
                f"draws {row['null_low']:.2f} to {row['null_high']:.2f}"
            )
            ends = row["cosine"], row["cosine_low"], row["cosine_high"]
            yield Finding(
                f"directions/cosine/layer_{row['layer']}",
                *ends,
                meaning,
                over="questions" if ends[1] is not None else "",
            )
            if row["layer"] == self.layer:
                yield Finding("directions/cosine", *ends, meaning, over="questions" if ends[1] is not None else "")
                said = f"cosine at layer {self.layer} less that of one more draw of {null} (prediction interval)"
                yield Finding("directions/over_null", *_less_null(row), said, over="draws and questions")


def _less_null(row: dict[str, Any]) -> Bounded:
    """The cosine of a row less one more draw of its null, as of independent numbers."""
    own, null = (Number(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in ("cosine", "null"))
    less = own.less(null)
    return less.value, less.low, less.high


def _kept(folder: Path | None, found: dict[str, Direction]) -> Iterator[Note]:
    """Writes directions/<role>.safetensors into the run folder."""
    if folder is None:
        return
    place = folder / "directions"
    with changing(place):
        make_folder(place)
        for role, direction in found.items():
            direction.save(place / f"{role}.safetensors")
    yield Note(
        "directions/base.safetensors and directions/tuned.safetensors hold its vectors: direction=file direction.path=..."
    )


@torch.no_grad()
def word_logits(pair: ModelPair, vectors: dict[str, Tensor]) -> dict[tuple[str, str], float]:
    """(model of the vector, model of the unembedding) -> sum of the words' logits among the TOP largest, on the direct path of
    the vector at length 1: W_U (g * v / |v|)."""
    word = words(pair.hesitations)
    found = {}
    for head in ROLES:
        weight, gain = unembedding(pair.models[head])
        tokenizer = pair.tokenizers[pair.entry(head)]
        for source, vector in vectors.items():
            unit = torch.nn.functional.normalize(vector.to(gain), dim=0) * gain
            logits = torch.cat([part.float() @ unit for part in weight[: len(tokenizer)].split(8192)])
            values, tokens = logits.topk(min(TOP, len(logits)))
            spelled = [bool(word.fullmatch(tokenizer.decode([token]).strip())) for token in tokens.tolist()]
            found[source, head] = float(values[torch.tensor(spelled)].sum())
    return found


def _long(columns: dict[str, list]) -> dict[str, list]:
    """The cosines and those of the null below one another, for a picture of both."""
    made: dict[str, list] = {"layer": columns["layer"] * 2}
    for end in ("", "_low", "_high"):
        made[f"cosine{end}"] = [*columns[f"cosine{end}"], *columns[f"null{end}"]]
    count = len(columns["layer"])
    return made | {"what": ["base and tuned"] * count + ["null"] * count, "null": [False] * count + [True] * count}
