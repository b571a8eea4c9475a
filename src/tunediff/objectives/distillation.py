"""A model with the base's MLPs and adapters beside them, and the tuned model -> how far the first is from the second
(arXiv 2602.20904, section 3 and appendix A):

    adapt   KL(tuned || adapted)                                    next tokens, at every token of the sequence
  + nmse    mean over residual points of sum (h' - h)^2 / sum h^2   embeddings and what leaves each layer, over the tokens
                                                                    of a micro-batch
  + bridge  KL(tuned || adapted below layer k, tuned from there) + KL(tuned || tuned below k, adapted from there)
  + the sparsity's own penalty, summed over layers

The models share all but their MLPs, so that any mixture of layers is one ordinary forward pass, whatever the architecture.
KL is taken in float32, over a block of tokens at a time, its gradient with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tunediff import randomness
from tunediff.dictionary import Pass, Transcoder, TranscoderAdapter
from tunediff.hookpoints import Point, decoder_layers, reading
from tunediff.models import LOGITS_MB, Head, PreTrainedModel, head_of, switch_mlps
from tunediff.objectives.pass_losses import PassLosses
from tunediff.schedules import Constant, Length, Schedule
from tunediff.shapes import ADAPTER, TUNED, Refused
from tunediff.text.examples import IGNORED, MicroBatch, Step

MATRICES = 4  # [token, vocabulary] held at once: both logits, probabilities, and one on the way to them
WHOLE, RESIDUALS, BELOW, ABOVE = "adapter", "residuals", "adapter_first", "tuned_first"


class Term(NamedTuple):
    """One forward pass: the MLP chosen in each layer, the scheduled values of the step, and the weights of KL and NMSE.
    `share` is the weight of its KL in a mean over several passes. The pass named adapter pays the sparsity penalty."""

    name: str
    choices: tuple[str, ...]
    settings: Mapping[str, float]
    kl: float = 0.0
    nmse: float = 0.0
    share: float = 1.0


class Target(NamedTuple):
    """Results of the tuned model on the token ids `of`: last hidden vectors [batch, position, width], and residual points
    where they are asked for."""

    of: Tensor
    hidden: Tensor
    residuals: list[Tensor]


class Distillation:
    """Distills the tuned model into the transcoders of an adapter.

    adapt, bridge, nmse   weights of the terms; that of bridge holds for each direction (1 in the paper, 2 in its code)
    cutoffs      number of cutoffs k drawn per step; their bridging terms are averaged
    lowest_cutoff   smallest k; it is drawn evenly up to the number of layers (from 1 in the paper, from 0 in its code).
                 Mixtures that are the tuned model itself are left out: nothing is learned from them
    separately   true: KL and NMSE of the adapted model in two passes, as in the code; false: in one pass, which gives the
                 same faster (bench/adapters.py) and takes hardly more memory
    logits_mb    10^6 bytes of float32 logits, of both models, that are held at once with their gradient
    """

    adapter: TranscoderAdapter  # set by `teach`

    measures = ("loss", "kl", "nmse", "kl_adapter_first", "kl_tuned_first", "penalty", "l0")

    def __init__(
        self,
        *,
        adapt: float = 1.0,
        bridge: float = 1.0,
        nmse: float = 1.0,
        cutoffs: int = 1,
        lowest_cutoff: int = 1,
        separately: bool = False,
        logits_mb: float = LOGITS_MB,
    ):
        for name, weight in (("adapt", adapt), ("bridge", bridge), ("nmse", nmse)):
            if weight < 0:
                raise Refused(f"dictionary.objective.{name}={weight}: a weight is not negative.")
        if adapt == nmse == 0:
            raise Refused("dictionary.objective.adapt=0 and nmse=0: one of them must teach the whole adapter.")
        if cutoffs < 0 or lowest_cutoff not in (0, 1):
            raise Refused(
                f"dictionary.objective.cutoffs={cutoffs}, lowest_cutoff={lowest_cutoff}: give a number from 0, and 0 or 1."
            )
        self.adapt, self.bridge, self.nmse = adapt, bridge, nmse
        self.cutoffs, self.lowest_cutoff, self.separately = cutoffs, lowest_cutoff, separately
        self.logits_mb = logits_mb
        self.l1_schedule: Schedule = Constant()
        self._target: Target | None = None

    def teach(self, adapter: TranscoderAdapter, l1_schedule: Schedule) -> Distillation:
        """Sets the adapter that learns, and the factor of its penalty over the run. Raises Refused where they do not fit."""
        if self.cutoffs > len(adapter.layers):
            raise Refused(
                f"dictionary.objective.cutoffs={self.cutoffs}: the models have {len(adapter.layers)} layers to cut at."
            )
        if not adapter.sparsity.has_penalty and l1_schedule != Constant():
            raise Refused(
                f"l1_schedule is {l1_schedule}, but {type(adapter.sparsity).__name__} has no penalty to schedule: leave "
                "l1_schedule out, or choose dictionary/sparsity=l1."
            )
        self.adapter, self.l1_schedule = adapter, l1_schedule
        return self

    def check(self, model: PreTrainedModel) -> None:
        """Raises Refused for a model that computes its logits otherwise than `head_of` knows."""
        head_of(model)

    # -- a step ----------------------------------------------------------------------------------------------------------

    def terms(self, step: int, length: Length, seed: int) -> Sequence[Term]:
        """Forward passes of a step, each with a backward pass of its own, so that no two hold memory at once."""
        layers = len(self.adapter.layers)
        settings = {"l1": self.l1_schedule(step, length), **self.adapter.sparsity.scheduled(step, length)}
        everywhere = (ADAPTER,) * layers
        if self.separately and self.nmse > 0 and self.adapt > 0:
            found = [
                Term(WHOLE, everywhere, settings, kl=self.adapt),
                Term(RESIDUALS, everywhere, settings, nmse=self.nmse),
            ]
        else:
            found = [Term(WHOLE, everywhere, settings, kl=self.adapt, nmse=self.nmse)]
        generator = randomness.generator(seed, "cutoffs of hybrid models", step)
        order = self.lowest_cutoff + torch.randperm(layers + 1 - self.lowest_cutoff, generator=generator)
        for cutoff in sorted(order[: self.cutoffs].tolist()) if self.bridge > 0 and self.cutoffs else ():
            below, above = (ADAPTER,) * cutoff, (TUNED,) * (layers - cutoff)
            for name, choices in ((BELOW, below + above), (ABOVE, (TUNED,) * cutoff + (ADAPTER,) * len(above))):
                if ADAPTER in choices:
                    found.append(Term(name, choices, settings, kl=self.bridge, share=1 / self.cutoffs))
        return found

    def part(self, model: PreTrainedModel, micro_batch: MicroBatch, term: Term, of: Step) -> PassLosses:
        """Losses of one forward pass of a replaceable model in training."""
        head_of(model)  # asked before the transcoders are told what to learn
        real = real_tokens(micro_batch)
        where = None if bool(real.all()) else real.flatten().nonzero()[:, 0]
        share = real.sum() / of.tokens  # of the step's tokens, over which means are taken
        target = self._target_of(model, micro_batch)
        learning = transcoders(model)
        for transcoder in learning:
            transcoder.training_pass = Pass(term.settings, where)
        hidden, residuals = self._run(model, micro_batch, term.choices, term.nmse > 0)
        told: dict[str, Tensor] = {}
        loss = torch.zeros((), device=real.device)
        if term.kl > 0:
            kl = term.share * self.kl_sum(model, micro_batch, hidden, target.hidden) / of.learned
            told["kl" if term.name == WHOLE else f"kl_{term.name}"] = kl.detach()
            loss = loss + term.kl * kl
        if term.nmse > 0:
            points = zip(residuals, target.residuals, strict=True)
            nmse = torch.stack([checkpoint(error_of, *pair, where, use_reentrant=False) for pair in points])
            told["nmse"] = nmse.mean().detach() * share
            self._target = target._replace(residuals=[])  # no other pass of this micro-batch asks for them
            loss = loss + term.nmse * nmse.mean() * share
        if term.name == WHOLE:
            for transcoder in learning:  # thresholds follow the whole adapter, not a mixture of layers
                transcoder.sparsity.settle()
            seen = [transcoder.seen for transcoder in learning if transcoder.seen is not None]
            none = torch.zeros((), device=real.device)
            penalty = sum((sum(one.penalties.values(), none) for one in seen), none)
            told["penalty"] = penalty.detach() * share
            told["l0"] = torch.stack([one.l0 for one in seen]).mean() * share
            loss = loss + penalty * share
        told["loss"] = loss.detach()
        return PassLosses(loss, told)

    def held_out(self, model: PreTrainedModel, micro_batch: MicroBatch, of: Step) -> Tensor:
        """KL(tuned || adapted) per learned token, with latents as they are outside training."""
        self._target = None
        forget(transcoders(model))
        target = self._target_of(model, micro_batch)
        hidden, _ = self._run(model, micro_batch, (ADAPTER,) * len(self.adapter.layers), False)
        self._target = None
        return self.kl_sum(model, micro_batch, hidden, target.hidden) / of.learned

    def settle(self, model: PreTrainedModel) -> None:
        """Called after an optimizer step: lets go of the results of its passes."""
        self._target = None
        forget(transcoders(model))

    def state(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Buffers that the sparsities carry from step to step, such as thresholds; they belong into a checkpoint."""
        kept = ((n, one.sparsity.named_buffers()) for n, one in enumerate(transcoders(model)))
        return {f"{n}.{name}": buffer for n, buffers in kept for name, buffer in buffers}

    # -- its terms -------------------------------------------------------------------------------------------------------

    def kl_sum(self, model: PreTrainedModel, micro_batch: MicroBatch, hidden: Tensor, target: Tensor) -> Tensor:
        """KL(tuned || model) in nats, summed over the tokens that have a next one."""
        asked = (micro_batch.labels.flatten() != IGNORED).nonzero()[:, 0]
        mine, theirs = picked(hidden.flatten(0, 1), asked), picked(target.flatten(0, 1), asked)
        head = head_of(model)
        rows = head.rows(self.logits_mb, MATRICES)
        total = torch.zeros((), device=hidden.device)
        for some, wanted in zip(mine.split(rows), theirs.split(rows), strict=True):
            total = total + Divergence.apply(some, wanted, head)
        return total

    def _target_of(self, model: PreTrainedModel, micro_batch: MicroBatch) -> Target:
        """Results of the tuned model, computed once for all passes of a micro-batch."""
        if self._target is None or self._target.of is not micro_batch.ids:
            choices = (TUNED,) * len(self.adapter.layers)
            with torch.no_grad():
                self._target = Target(micro_batch.ids, *self._run(model, micro_batch, choices, self.nmse > 0))
        return self._target

    def _run(
        self, model: PreTrainedModel, micro_batch: MicroBatch, choices: Sequence[str], residuals: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Last hidden vectors [batch, position, width] and, where asked for, the residual stream before the first layer and
        after each. The choices stay until the next pass: checkpointed layers run again in the backward pass."""
        switch_mlps(model, choices)
        count = len(choices)
        points = [Point("resid_pre", 0), *(Point("resid_post", n) for n in range(count))] if residuals else []
        with reading(model, points, stop=False, detach=False) as read:
            ids, positions, _ = micro_batch
            hidden = model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        return hidden, [read[point] for point in points]


def error_of(mine: Tensor, theirs: Tensor, where: Tensor | None) -> Tensor:
    """NMSE of one residual point, sum (h' - h)^2 / sum h^2 over the real tokens of a micro-batch, in float32. It is
    computed again in the backward pass, which else would hold the differences of all residual points."""
    mine, theirs = (picked(h.flatten(0, 1), where).float() for h in (mine, theirs))
    return (mine - theirs).square().sum() / theirs.square().sum().clamp(min=1e-8)


class Divergence(torch.autograd.Function):
    """KL(target || hidden) between the next-token distributions of two hidden vectors, summed over tokens:

        sum_v p_v (a_v - b_v) + logsumexp(b) - logsumexp(a)     a: target's logits, p = softmax(a); b: the model's

    In this form value and gradient, softmax(b) - p, are exactly zero where the logits are the same. An optimizer that
    divides by the size of the gradient would follow whatever rounding leaves there.

    The gradient is computed in the forward pass: it is as large as the hidden vectors, and no product with the head is
    computed again in the backward pass. The head itself is frozen."""

    @staticmethod
    def forward(ctx, hidden: Tensor, target: Tensor, head: Head) -> Tensor:
        learned = ctx.needs_input_grad[0]
        wanted = head(target)
        p, normaliser = _softmax(wanted)
        with torch.set_grad_enabled(learned):
            mine = hidden.detach().requires_grad_(learned)
            logits = head(mine)
        b = logits.detach()
        value = wanted.sub_(b).mul_(p).sum()
        del wanted
        q, own = _softmax(b)
        q.sub_(p)
        del p
        if learned:
            ctx.save_for_backward(*torch.autograd.grad(logits, mine, q))
        return value + (own - normaliser).sum()

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = grad_outputs
        return gradient * ctx.saved_tensors[0], None, None


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [token, vocabulary], and the logarithms of what they were divided by, [token, 1]."""
    normaliser = logits.logsumexp(dim=-1, keepdim=True)
    return (logits - normaliser).exp_(), normaliser


def picked(rows: Tensor, where: Tensor | None) -> Tensor:
    """Rows at the indices `where`; None: all. By index_select, whose gradient is added row by row, where that of rows[mask]
    is added number by number."""
    return rows if where is None else rows.index_select(0, where)


def real_tokens(micro_batch: MicroBatch) -> Tensor:
    """Mask [batch, position] of the tokens that are not padding, where every token of a sequence is learned: those that have
    a next token, and the last."""
    labelled = micro_batch.labels != IGNORED
    real = labelled.clone()
    real[:, 1:] |= labelled[:, :-1]
    return real


def transcoders(model: PreTrainedModel) -> list[Transcoder]:
    return [cast(Transcoder, layer.get_submodule("mlp.adapted.transcoder")) for layer in decoder_layers(model)]


def forget(learning: Sequence[Transcoder]) -> None:
    for transcoder in learning:
        transcoder.training_pass = transcoder.seen = None
