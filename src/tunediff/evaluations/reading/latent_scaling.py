"""Latents of one model that are really absent from the other: a latent's decoder direction, fitted to what the other model holds,
leaves unexplained, or rebuilds (Minder et al. 2025, arXiv 2504.02922, section 3; all in the dictionary's normalised units).

For latent j, its decoder direction d_j in the model it is said to belong to, and a target y of a model:

    beta = sum_t f_j(t) <d_j, y(t)> / (|d_j|^2 sum_t f_j(t)^2)                     least squares
    activation target      y = x
    error target           y = x - (x_hat - f_j d_j^model)       what remains once the latent's own part is given back
    reconstruction target  y = x_hat
    nu = beta in the other model / beta in its own

nu_error near 1: the other model's error still holds the concept (complete shrinkage). High nu_reconstruction: other latents
write it there (latent decoupling). Both near 0: the latent is exclusive.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.activations import CONTROLS, EQUAL, NOISE, PERMUTED
from tunediff.dictionary import ReconstructingDictionary
from tunediff.evaluations.given import Needs, Trained
from tunediff.evaluations.latents.statistics import called_exclusive, relative_decoder_norm
from tunediff.measures.clustered import DocumentSums, number, ratio
from tunediff.shapes import BASE, BLOCK, OTHER, TUNED, Figure, Finding, Note, Rows, Table

LARGEST_NU_ERROR, LARGEST_NU_RECONSTRUCTION = 0.2, 0.5
CONTROL_WORDS = {
    EQUAL: "the base beside itself",
    NOISE: "the base beside a copy with noise",
    PERMUTED: "the base beside the tuned model on other tokens",
}
TRUTHS = {
    EQUAL: "none is one model's own",
    NOISE: "noise alone is one model's own",
    PERMUTED: "all are one model's own",
}
TARGETS = ("activation", "error", "reconstruction")
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
                truth = TRUTHS[name]
                meaning = (
                    f"the same dictionary on {CONTROL_WORDS[name]}, where {truth}: of {one.count} latents that "
                    f"are {kind.replace('_', '-')} by decoder norm, those that latent scaling confirms"
                )
                yield Finding(f"latent_scaling/control/{name}/{kind}", one.confirmed, meaning=meaning)
        if len(found) == 1:
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
            "on other tokens all are.",
            words={"called": "by decoder norm", "confirmed": "confirmed by latent scaling"},
        )  # fmt: skip
        confirmed = {name: sum(one.confirmed for one in kinds.values()) for name, kinds in found.items()}
        for name, said in (
            (EQUAL, "these calls are no evidence"),
            (NOISE, "a difference of that size gives as many unlearned"),
        ):
            if name in found and 0 < confirmed["pair"] <= confirmed[name]:
                yield Note(
                    f"latent_scaling confirms {confirmed['pair']} exclusive latents of the pair, and of the same dictionary on "
                    f"{CONTROL_WORDS[name]}, where {TRUTHS[name]}, {confirmed[name]}: {said}."
                )
        if PERMUTED in found:
            share = confirmed[PERMUTED] / max(alive, 1)
            meaning = (
                f"share of the {alive} alive latents that the same dictionary shows to be one model's own on {CONTROL_WORDS[PERMUTED]}, "
                "where all are: what it can see of them at most"
            )
            yield Finding("latent_scaling/power", share, meaning=meaning)


class Called:
    """The latents [n] that are called one model's own, with the ratios of each and their intervals over documents.

    numbers   their indices, the alive among them counted in `count` once `decide` was called
    holds     [n] true for a call that is confirmed                 highest   name of a ratio -> upper bound [n]
    """

    def __init__(self, dictionary: ReconstructingDictionary, own: str, numbers: Tensor):
        self.dictionary, self.own, self.numbers = dictionary, own, numbers
        self.sums = DocumentSums()
        rows = dictionary.W_dec.detach()[numbers.to(dictionary.W_dec.device)]
        self.direction = dictionary.part(rows, own)
        self.given_back = {role: (self.direction * dictionary.part(rows, role)).sum(-1) for role in (own, OTHER[own])}

    @torch.no_grad()
    def add(self, rows: Rows, latents: Tensor, documents: Tensor) -> None:
        """Adds a block of rows with their latents [token, latent] and documents [token]."""
        if not len(self.numbers):
            return
        mine = latents[:, self.numbers.to(latents.device)]
        target, restored = self.dictionary.normalisation.normalise(*rows), self.dictionary.reconstruct(latents)
        parts = []
        for role in (self.own, OTHER[self.own]):
            left, rebuilt = (self.dictionary.part(values, role) for values in (target - restored, restored))
            parts.append(mine * (left @ self.direction.T) + mine.square() * self.given_back[role])
            parts.append(mine * (rebuilt @ self.direction.T))
        self.sums.add(torch.stack([*parts, mine.square()], dim=-1).double().cpu(), documents.cpu())

    def decide(self, largest_nu_error: float, largest_nu_reconstruction: float) -> None:
        """Confirms the calls of which both ratios are surely below these limits."""
        self.holds = torch.zeros(len(self.numbers), dtype=torch.bool)
        self.highest, self.count, self.confirmed = {}, 0, 0
        if not len(self.numbers) or not len(self.sums):
            return
        sums = self.sums.stacked()  # [document, n, 5]
        alive = sums[..., 4].sum(0) > 0
        for name, (own, other) in {"nu_error": (0, 2), "nu_reconstruction": (1, 3)}.items():
            self.highest[name] = ratio(sums[..., other], sums[..., own]).interval(0.95)[1]
        self.holds = alive & (self.highest["nu_error"] < largest_nu_error)
        self.holds &= self.highest["nu_reconstruction"] < largest_nu_reconstruction
        self.count, self.confirmed = int(alive.sum()), int(self.holds.sum())


class Scaling(NamedTuple):
    """Every latent taken as belonging to one model (`own`), with beta [latent] for each (target, model). `alive` [latent] is
    true where it fired at all; else its betas are NaN."""

    own: str
    beta: dict[tuple[str, str], Tensor]
    alive: Tensor

    def nu(self, target: str) -> Tensor:
        """Ratio [latent] of beta in the other model to beta in its own."""
        other = OTHER[self.own]
        return (self.beta[target, other] / self.beta[target, self.own]).float()

    def exclusive(
        self, largest_nu_error: float = LARGEST_NU_ERROR, largest_nu_reconstruction: float = LARGEST_NU_RECONSTRUCTION
    ) -> Tensor:
        """Mask [latent] of the latents with both ratios below their limits."""
        return (self.nu("error") < largest_nu_error) & (self.nu("reconstruction") < largest_nu_reconstruction)


@torch.no_grad()
def latent_scaling(dictionary: ReconstructingDictionary, blocks: Iterable[tuple[Rows, Tensor]]) -> dict[str, Scaling]:
    """The scaling of every latent as if it belonged to either model, in one pass over blocks of rows with their latents
    [token, latent]. Products in float32, sums over blocks in float64."""
    shape, device = dictionary.W_dec.shape, dictionary.W_dec.device
    # All three targets are sums of two: x = error + x_hat, and the error target is error + f_j d_j. So <d_j, y> summed with
    # f_j needs only the sums of f_j times the error and times x_hat, [latent, width], however many latents there are; the
    # latent's own part is |f_j|^2 times the product of its two decoder rows.
    of_error, of_restored = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(2))
    squares = torch.zeros(dictionary.latents, dtype=torch.float64, device=device)
    for rows, latents in blocks:
        target = dictionary.normalisation.normalise(*rows)
        restored = dictionary.reconstruct(latents)
        of_error += latents.T @ (target - restored)
        of_restored += latents.T @ restored
        squares += latents.square().sum(0)
    decoders = {role: dictionary.part(dictionary.W_dec.double(), role) for role in (BASE, TUNED)}
    found = {}
    for own in (TUNED, BASE):
        direction = decoders[own]
        size = direction.square().sum(-1) * squares
        beta = {}
        for role in (BASE, TUNED):
            error, restored = ((direction * dictionary.part(sums, role)).sum(-1) for sums in (of_error, of_restored))
            given_back = (direction * decoders[role]).sum(-1) * squares
            for name, value in zip(TARGETS, (error + restored, error + given_back, restored), strict=True):
                beta[name, role] = (value / size).cpu()
        found[own] = Scaling(own, beta, (squares > 0).cpu())
    return found
