"""Latents that look exclusive, and those of them that latent scaling confirms (evaluations/latents/scaling.py), on the pair
and on its controls.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tunediff.activations import CONTROLS, EQUAL, NOISE, PERMUTED, PLANTED
from tunediff.evaluations.given import Needs, Trained
from tunediff.evaluations.latents.scaling import (
    LARGEST_NU_ERROR,
    LARGEST_NU_RECONSTRUCTION,
    TARGETS,
    Called,
    Scaling,
    latent_scaling,
)
from tunediff.evaluations.latents.statistics import called_exclusive, relative_decoder_norm
from tunediff.evaluations.reading.planted_truth import planted_recall
from tunediff.measures.clustered import number
from tunediff.measures.shares import share
from tunediff.shapes import BASE, BLOCK, TUNED, Figure, Finding, Note, Rows, Table

CONTROL_WORDS = {
    EQUAL: "the base beside itself",
    NOISE: "the base beside a copy with noise",
    PERMUTED: "the base beside the tuned model on other tokens",
    PLANTED: "the base beside a copy with planted directions",
}
TRUTHS = {
    EQUAL: "none is one model's own",
    NOISE: "noise alone is one model's own",
    PERMUTED: "all are one model's own",
    PLANTED: "what was planted is one model's own",
}
RATIOS = ("error", "reconstruction", "activation")  # in the order of their columns


@dataclass(kw_only=True)
class LatentScaling:
    """exclusive   below this relative decoder norm a latent is called base-only, above 1 minus it tuned-only; the same as
                   in geometry
    largest_nu_error, largest_nu_reconstruction   a call is confirmed where the 95 % interval of either ratio, over documents,
                   ends below (the paper's section 3.3, which asks it of the ratios alone)

    The same is asked of the dictionary of every control that was trained beside the study's, on that control.
    """

    needs = Needs.RECONSTRUCTION

    exclusive: float = 0.1
    largest_nu_error: float = LARGEST_NU_ERROR
    largest_nu_reconstruction: float = LARGEST_NU_RECONSTRUCTION

    def run(self, trained: Trained) -> Iterator[Finding | Table | Figure | Note]:
        if set(trained.roles) != {BASE, TUNED}:
            yield Note("Latent scaling compares two models: this dictionary reads one.")
            return
        dictionary = trained.reconstructing
        if trained.part(dictionary.W_dec, BASE).shape != trained.part(dictionary.W_dec, TUNED).shape:
            yield Note("Latent scaling needs models of equal widths: a direction of one is none of the other.")
            return
        scaling, calls = self.calls(trained)
        limits = (
            f"a nu_error surely below {self.largest_nu_error} and a nu_reconstruction surely below "
            f"{self.largest_nu_reconstruction} (95 % over documents)"
        )
        for kind, found in calls.items():
            meaning = f"of {found.count} latents that are {kind.replace('_', '-')} by decoder norm, those with {limits}"
            column = f"confirmed {kind.replace('_', '-')}"
            yield Finding(f"latent_scaling/count/{kind}", found.confirmed, meaning=meaning, column=column)
            yield Finding(
                f"latent_scaling/confirmed/{kind}", *share(found.confirmed, found.count), over="latents",
                meaning=f"share of the latents that are {kind.replace('_', '-')} by decoder norm which have {limits}",
            )  # fmt: skip
        yield Table("latents", self.columns(relative_decoder_norm(trained), scaling, calls))
        yield from self.on_controls(trained, calls)

    def calls(self, trained: Trained) -> tuple[dict[str, Scaling], dict[str, Called]]:
        """The scaling of every latent, and what is called base_only and tuned_only, from one pass of the held-out text."""
        dictionary, called = trained.reconstructing, called_exclusive(trained, self.exclusive)
        calls = {
            kind: Called(dictionary, own, called[kind].nonzero()[:, 0])
            for kind, own in (("base_only", BASE), ("tuned_only", TUNED))
        }

        def blocks() -> Iterator[tuple[Rows, Tensor]]:
            for reading in trained.readings("latent scaling"):
                documents = reading.batch.document.split(BLOCK)
                for rows, latents, here in zip(
                    reading.rows.blocks(), reading.latents.split(BLOCK), documents, strict=True
                ):
                    for found in calls.values():
                        found.add(rows, latents, here)
                    yield rows, latents

        scaling = latent_scaling(dictionary, blocks())
        for found in calls.values():
            found.decide(self.largest_nu_error, self.largest_nu_reconstruction)
        return scaling, calls

    def columns(self, relative: Tensor, scaling: dict[str, Scaling], calls: dict[str, Called]) -> dict[str, list]:
        """Columns of the table of latents: of a latent that leans to the tuned model its ratios as the tuned model's own,
        and for one that is called exclusive their upper bounds and whether the call is confirmed."""
        latents, leans, alive = len(relative), relative >= 0.5, scaling[BASE].alive
        columns: dict[str, list] = {"latent": list(range(latents))}
        columns |= {name: [None] * latents for name in ("confirmed", "nu_error_high", "nu_reconstruction_high")}
        for found in calls.values():
            for n, latent in enumerate(found.numbers.tolist()):
                columns["confirmed"][latent] = bool(found.holds[n])
                for name, high in found.highest.items():
                    columns[f"{name}_high"][latent] = number(high[n])
        of_either = {f"nu_{name}": [scaling[own].nu(name) for own in (TUNED, BASE)] for name in RATIOS}
        for target, role in itertools.product(TARGETS, (BASE, TUNED)):
            of_either[f"beta_{target}/{role}"] = [scaling[own].beta[target, role] for own in (TUNED, BASE)]
        for name, (tuned, base) in of_either.items():
            values = torch.where(leans, tuned, base).tolist()
            columns[name] = [value if alive[n] else None for n, value in enumerate(values)]
        return columns

    def on_controls(self, trained: Trained, own: dict[str, Called]) -> Iterator[Finding | Table | Figure | Note]:
        """Calls of the same dictionary on each control of the pair, and how many are confirmed; and in words what that says of the calls on the pair."""
        found, alive = {"pair": own}, 0
        for name in (name for name in CONTROLS if name in trained.companions):
            scaling, found[name] = self.calls(trained.beside(name))
            alive = int(scaling[BASE].alive.sum()) if name == PERMUTED else alive
            for kind, one in found[name].items():
                meaning = (
                    f"the same dictionary on {CONTROL_WORDS[name]}, where {TRUTHS[name]}: of {one.count} latents that "
                    f"are {kind.replace('_', '-')} by decoder norm, those that latent scaling confirms"
                )
                yield Finding(f"latent_scaling/control/{name}/{kind}", one.confirmed, meaning=meaning)
                meaning = f"latents that are {kind.replace('_', '-')} by decoder norm on {CONTROL_WORDS[name]}, where {TRUTHS[name]}"
                yield Finding(f"latent_scaling/control/{name}/called/{kind}", one.count, meaning=meaning)
        if len(found) == 1:
            yield Note(
                "latent_scaling has no control beside it: nothing says which exclusive directions this dictionary would see, and "
                "which it would make up (budget.companions=[equal,noise,permuted,planted])."
            )
            return
        rows = [(name, kind, one.count, one.confirmed) for name, kinds in found.items() for kind, one in kinds.items()]
        columns = zip(("read", "kind", "called", "confirmed"), map(list, zip(*rows, strict=True)), strict=True)
        yield Table("controls", dict(columns))
        words = {"pair": "this pair"} | CONTROL_WORDS
        drawn = {
            "read": [f"{words[name]}: {kind.replace('_', '-')}" for name, kind, _, _ in rows],
            "called": [called for _, _, called, _ in rows],
            "confirmed": [sure for _, _, _, sure in rows],
            "control": [name != "pair" for name, _, _, _ in rows],
        }
        yield Figure(
            "latent_scaling/controls", "bars", drawn, x="read", y=["called", "confirmed"], control="control", section="Controls",
            title="Latents that are called one model's own", caption="The same dictionary, trained on the pair and on controls. "
            "Of the base beside itself none is one model's own; beside a copy with noise what follows the noise is; beside the tuned model "
            "on other tokens all are; beside a copy with planted directions those are.",
            words={"called": "by decoder norm", "confirmed": "confirmed by latent scaling"},
        )  # fmt: skip
        confirmed = {name: sum(one.confirmed for one in kinds.values()) for name, kinds in found.items()}
        for name, said in (
            (EQUAL, "these calls are no evidence"),
            (NOISE, "a difference of that size that nobody learned gives as many"),
        ):
            if name in found and 0 < confirmed["pair"] <= confirmed[name]:
                yield Note(
                    f"latent_scaling confirms {confirmed['pair']} exclusive latents of the pair, and of the same dictionary on "
                    f"{CONTROL_WORDS[name]}, where {TRUTHS[name]}, {confirmed[name]}: {said}."
                )
        if PERMUTED in found:
            of_all = confirmed[PERMUTED] / max(alive, 1)
            meaning = f"share of the {alive} alive latents there that are confirmed as one model's own, where all are"
            yield Finding("latent_scaling/control/permuted/share", of_all, meaning=meaning)
        if PLANTED in found:
            yield from planted_recall(found[PLANTED]["tuned_only"])
