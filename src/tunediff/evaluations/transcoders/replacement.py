"""A transcoder adapter on held-out text: how far the adapted model is from the tuned one, as a whole, from any layer on, and
in its residual stream (arXiv 2602.20904, appendix A).

    adapter_first   the adapter in the layers below a cutoff, the tuned MLPs from it on        tuned_first   the other way
    kl              KL(tuned || replaced), nats a token; at no or at every layer it is the tuned model, or the adapted one
    kl_recovered    1 - KL(tuned || adapter) / KL(tuned || hybrid)
    nmse            sum |h_replaced - h_tuned|^2 / sum |h_tuned|^2 over tokens, of the residual stream at the embeddings and
                    after every layer, before the final norm; the mean is not taken off

Each also with the bare hybrid in the adapter's place. All in float32 or better over the kept tokens, in batches as the
study reads them; intervals: 95 %, clustered by document (measures/clustered.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.evaluations.given import ALL, Needs, Trained, Work
from tunediff.hookpoints import Point, reading
from tunediff.measures.clustered import DocumentSums, Estimate, interval_columns, quotient, ratio
from tunediff.measures.next_tokens import compared, predicted
from tunediff.models import ModelPair, PreTrainedModel, head_of, replaceable, replacing
from tunediff.shapes import ADAPTER, BASE, HYBRID, TUNED, Figure, Finding, Note, Stream, Table
from tunediff.text import Batch

NAME = "replacement"
ADAPTER_FIRST, TUNED_FIRST = "adapter_first", "tuned_first"
STAND_INS = (ADAPTER, HYBRID)
Choices = tuple[str, ...]  # what each layer computes


class Partial(NamedTuple):
    """The stand-in, adapter or hybrid, below a cutoff and the tuned MLPs from it on; or the other way."""

    direction: str
    stand_in: str
    cutoff: int

    def choices(self, depth: int) -> Choices:
        order = (self.stand_in, TUNED) if self.direction == ADAPTER_FIRST else (TUNED, self.stand_in)
        return (order[0],) * self.cutoff + (order[1],) * (depth - self.cutoff)


class Measured(NamedTuple):
    """Sums over the tokens of every document, float64.

    costs      choices of each run -> [document, 3]: tokens, KL from the tuned model, cross-entropy
    errors     [document, STAND_INS, point]: squared distance from the tuned model's residual stream
    squares    [document, point]: squared norm of the tuned model's own
    active     [document, 2]: active latents, mean over layers, and tokens
    """

    costs: dict[Choices, Tensor]
    errors: Tensor
    squares: Tensor
    active: Tensor


class Replacement:
    """Runs four passes per layer over the held-out text."""

    needs = Needs.ADAPTER

    def work(self, pair: ModelPair, streams: Sequence[Stream]) -> Work:
        """Adapter and hybrid below and above every cutoff."""
        return Work(passes=4 * len(streams))

    def run(self, trained: Trained) -> Iterator[Finding | Table | Figure | Note]:
        adapter = trained.adapter(NAME)
        depth = len(adapter.layers)
        partials = [
            Partial(direction, stand_in, cutoff)
            for direction in (ADAPTER_FIRST, TUNED_FIRST)
            for stand_in in STAND_INS
            for cutoff in range(depth + 1)
        ]
        found = measured(trained, [partial.choices(depth) for partial in partials])
        yield from _whole(found.costs, depth)
        kls = {partial: _kl(found.costs[partial.choices(depth)]) for partial in partials}
        yield from _worst(kls)
        table = _partial_table(kls, found.costs, depth)
        yield table
        yield from partial_figures(table.columns)
        yield from _residual(found)
        yield from _latents(trained, ratio(*found.active.T))


def measured(trained: Trained, runs: Sequence[Choices]) -> Measured:
    """Costs of every distinct run, and errors in the residual stream of those in which all layers are replaced."""
    pair, adapter = trained.pair, trained.adapter(NAME)
    model = replaceable(pair.models[TUNED], pair.models[BASE], adapter)
    depth = len(adapter.layers)
    runs = list(dict.fromkeys([(TUNED,) * depth, *((stand_in,) * depth for stand_in in STAND_INS), *runs]))
    costs, residual = DocumentSums(), DocumentSums()
    for batch in trained.batches(NAME):
        documents, each_cost, along = _of_batch(trained, model, runs, batch)
        costs.add(each_cost, documents)
        residual.add(along, batch.document)
    of_runs = costs.stacked()  # tokens, then KL and cross-entropy of each run
    by_run = {run: of_runs[:, [0, 2 * n + 1, 2 * n + 2]] for n, run in enumerate(runs)}
    squares, *errors, active = residual.stacked().split([depth + 1] * (1 + len(STAND_INS)) + [2], dim=1)
    return Measured(by_run, torch.stack(errors, dim=1), squares, active)


@torch.no_grad()
def _of_batch(
    trained: Trained, model: PreTrainedModel, runs: Sequence[Choices], batch: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """Documents and costs [scored, column] of the tokens that are scored, and squares along the residual stream of all
    kept tokens [token, column], then their active latents. The tuned model runs first."""
    pair, depth = trained.pair, len(runs[0])
    before, targets, documents, _ = predicted(pair, TUNED, batch)
    head = head_of(pair.models[TUNED])  # which no choice of MLPs changes
    inputs, places = pair.inputs(TUNED, batch), pair.places(TUNED, batch)
    points = [Point("resid_pre", 0), *(Point("resid_post", layer) for layer in range(depth))]

    def run(choices: Choices, at: Sequence[Point]) -> tuple[Tensor, list[Tensor]]:
        with replacing(model, choices), reading(model, at, stop=False) as read:
            hidden = model.base_model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)[before]
        return hidden, [read[point].flatten(0, 1)[places].float() for point in at]

    tuned, own = run(runs[0], points)
    inside, layers = [Point("mlp_in", layer) for layer in range(depth)], trained.adapter(NAME).layers
    active = torch.zeros(len(places))
    columns = [torch.ones(len(targets), 1, dtype=torch.float64)]
    along = [torch.stack([h.double().square().sum(-1) for h in own], dim=-1)]
    for choices in runs:
        if choices == runs[0]:
            hidden = tuned
        elif choices in [(stand_in,) * depth for stand_in in STAND_INS]:
            mine = choices[0] == ADAPTER
            hidden, other = run(choices, [*points, *inside] if mine else points)
            other, entering = other[: len(points)], other[len(points) :]
            if mine:
                fired = [(one.encode(x) != 0).sum(-1) for one, x in zip(layers, entering, strict=True)]
                active = torch.stack(fired).double().mean(0)
            apart = [(h - known).double().square().sum(-1) for h, known in zip(other, own, strict=True)]
            along.append(torch.stack(apart, dim=-1))
        else:
            hidden, _ = run(choices, ())
        columns.append(compared(head, tuned, [hidden], targets, logits_mb=trained.logits_mb)[0].double())
    along += [active[:, None], torch.ones_like(active)[:, None]]
    return documents, torch.cat(columns, dim=1), torch.cat(along, dim=1).cpu()


# -- what is said of it ----------------------------------------------------------------------------------------------


def _kl(costs: Tensor) -> Estimate:
    return ratio(costs[:, 1], costs[:, 0])


def _lm_loss(costs: Tensor) -> Estimate:
    return ratio(costs[:, 2], costs[:, 0])


def _whole(costs: dict[Choices, Tensor], depth: int) -> Iterator[Finding | Note]:
    of = {who: costs[(who,) * depth] for who in (TUNED, *STAND_INS)}
    kls = {who: _kl(of[who]) for who in STAND_INS}
    recovered = quotient(kls[HYBRID] - kls[ADAPTER], kls[HYBRID], most=1.0)
    if recovered[0] is not None:
        meaning = "1 - KL(tuned || adapter) / KL(tuned || hybrid)"
        yield Finding(f"{NAME}/kl_recovered", *recovered, meaning, "KL rec.", "KL recovered", "documents")
    elif kls[HYBRID].value == 0:
        yield Note(
            f"{NAME}: the hybrid predicts just what the tuned model does, so that there is nothing an adapter could recover: "
            "the two models of the pair have the same MLPs."
        )
    else:
        yield Note(
            f"{NAME}: {len(kls[HYBRID].influence)} documents do not tell the hybrid's predictions from the tuned model's, so "
            "that no share of their distance can be given: measure on more text (tokens=...)."
        )
    for who, kl in kls.items():
        meaning = f"KL(tuned || {who}), nats a token of held-out text"
        words = ("KL adapter", "KL of the adapter") if who == ADAPTER else ("", "")
        yield Finding(f"{NAME}/kl/{who}", *kl.bounded(least=0.0), meaning, *words, "documents")
    for who, sums in of.items():
        loss = _lm_loss(sums)
        meaning = f"cross-entropy of the held-out text under {who}, nats a token"
        yield Finding(f"{NAME}/lm_loss/{who}", *loss.bounded(least=0.0), meaning, over="documents")


def _worst(kls: dict[Partial, Estimate]) -> Iterator[Finding]:
    for who in STAND_INS:
        of = [partial for partial in kls if partial.stand_in == who]
        worst = max(of, key=lambda one: float(kls[one].value))
        meaning = (
            f"largest KL(tuned || replaced) over all {len(of)} cuts, nats a token: {worst.direction} with {who}, cutoff "
            f"{worst.cutoff}; its interval is wide enough for whichever cut is the largest (Bonferroni)"
        )
        bounded = kls[worst].bounded(1 - 0.05 / len(of), least=0.0)
        yield Finding(f"{NAME}/worst_kl/{who}", *bounded, meaning, over="documents")


def _partial_table(kls: dict[Partial, Estimate], costs: dict[Choices, Tensor], depth: int) -> Table:
    rows = []
    for partial, kl in kls.items():
        loss = _lm_loss(costs[partial.choices(depth)])
        row = {"direction": partial.direction, "with": partial.stand_in, "cutoff": partial.cutoff}
        row |= interval_columns("kl", kl.bounded(least=0.0)) | interval_columns("lm_loss", loss.bounded(least=0.0))
        rows.append(row)
    return Table.of("partial_replacement", rows)


def _residual(found: Measured) -> Iterator[Finding | Table | Figure]:
    """Errors along the residual stream: point 0 is the embeddings, point n comes after layer n - 1."""
    nmse = {who: ratio(found.errors[:, n], found.squares) for n, who in enumerate(STAND_INS)}
    for who, estimate in nmse.items():
        mean = estimate.entries(lambda field: field.mean(-1))
        meaning = (
            f"sum |h_{who} - h_tuned|^2 / sum |h_tuned|^2 over held-out tokens, mean of {len(estimate.value)} points of the "
            "residual stream, the embeddings among them"
        )
        yield Finding(f"{NAME}/nmse/{who}", *mean.bounded(least=0.0), meaning, over="documents")
    columns = {who: estimate.value.tolist() for who, estimate in nmse.items()}
    points = list(range(found.squares.shape[1]))
    yield Table("residual_nmse", {"point": points, **columns})
    yield residual_figure(points, columns)


@torch.no_grad()
def _latents(trained: Trained, firing: Estimate) -> Iterator[Finding | Table | Figure]:
    """L0, dead latents and decoder norms of each layer in the adapted model; the norm is the median over latents that fired."""
    adapter = trained.adapter(NAME)
    shape = (len(adapter.layers), adapter.latents_per_layer)
    active, tokens = trained.statistics.active[ALL], trained.statistics.tokens[ALL]
    l0, alive = active.view(shape).sum(1) / max(tokens, 1), active.view(shape) > 0
    norms = adapter.code_norms().cpu().view(shape)
    dead = 1 - alive.double().mean(1)
    medians = [float(of[fired].median()) if fired.any() else None for of, fired in zip(norms, alive, strict=True)]
    meaning = "active latents a token and layer, mean over layers"
    yield Finding(f"{NAME}/l0", *firing.bounded(least=0.0), meaning, "L0 a layer", "L0 a layer", "documents")
    meaning = f"share of latents of all layers that fired on none of {tokens:,} held-out tokens"
    word = "never fired"
    yield Finding(f"{NAME}/dead_fraction", float(dead.mean()), meaning=meaning, column=word, line=word)
    columns = {"layer": list(range(shape[0])), "l0": l0.tolist()}
    columns |= {"dead_fraction": dead.tolist(), "decoder_norm": medians}
    yield Table("adapter_layers", columns)
    yield layers_figure(columns)


# -- how it is drawn -------------------------------------------------------------------------------------------------

SECTION = "Replacing MLPs layer by layer"
CAPTION = (
    "The model is cut at a layer: on one side of the cut the MLPs are those of base with the adapter beside them (hybrid: with "
    "nothing beside them), on the other the tuned ones. KL is that of the next token, KL(tuned || cut), in nats a token. Bands "
    "are 95 % intervals; where all layers are tuned the KL is 0, which a logarithmic axis does not show."
)
DIRECTIONS = {ADAPTER_FIRST: "adapted layers first", TUNED_FIRST: "tuned layers first"}


def partial_figures(columns: Mapping[str, list]) -> Iterator[Figure]:
    columns = {**columns, "order": [DIRECTIONS[one] for one in columns["direction"]]}
    columns["tuned_first"] = [one == TUNED_FIRST for one in columns["direction"]]
    words = {"cutoff": "layers before the cut", "tuned_first": DIRECTIONS[TUNED_FIRST], "lm_loss": "loss, nats"}
    given = {"kind": "lines", "columns": columns, "x": "cutoff", "section": SECTION, "group": "with", "words": words}
    yield Figure("replacement/kl", y=["kl"], title="KL", caption=CAPTION, facet="order", log=["kl"], **given)
    yield Figure(
        "replacement/lm_loss", y=["lm_loss"], title="Loss of the next token, nats", control="tuned_first", **given
    )


def residual_figure(points: Sequence[int], nmse: Mapping[str, list]) -> Figure:
    rows = [(point, who, value) for who, values in nmse.items() for point, value in zip(points, values, strict=True)]
    return Figure(
        name="replacement/nmse",
        kind="lines",
        columns=dict(zip(("point", "with", "nmse"), map(list, zip(*rows, strict=True)), strict=True)),
        x="point",
        y=["nmse"],
        section=SECTION,
        title="Residual stream, squared error",
        group="with",
        words={"point": "after so many layers"},
    )


def layers_figure(columns: Mapping[str, list]) -> Figure:
    return Figure(
        name="replacement/layers",
        kind="lines",
        columns={**columns, "with": [ADAPTER] * len(columns["layer"])},
        x="layer",
        y=["l0", "decoder_norm", "dead_fraction"],
        section=SECTION,
        title="The adapter's layers",
        group="with",
        words={
            "l0": "L0, active latents a token",
            "decoder_norm": "median norm of decoder rows",
            "dead_fraction": "latents that never fired, share",
        },
    )
