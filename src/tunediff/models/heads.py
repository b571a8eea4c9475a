"""Last hidden vectors of a causal language model -> its logits: by its head, a factor and a soft cap.

Logits of a long sequence over a whole vocabulary are larger than anything else in memory (2,048 tokens over 152,064 entries
in float32 are 1.2 GB), so whoever compares or learns next tokens runs the backbone alone and takes logits for a block of
rows at a time. Knows no loss.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunediff.shapes import Refused

LOGITS_MB = 512.0  # of all matrices of logits that are held at once, where nothing else is said
SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")  # Cohere; Granite, which divides; Falcon-H1
FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma 2; RecurrentGemma; xLSTM


@dataclass(frozen=True)
class Head:
    """Hidden vectors behind the final norm -> logits, scale * module(hidden), or cap * tanh(of these / cap).

    module      output embeddings, with their bias        vocabulary   number of logits
    """

    module: nn.Module
    vocabulary: int
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] in float32 of hidden vectors [..., width]."""
        logits = self.module(hidden).float()
        if self.scale != 1.0:
            logits = logits.mul_(self.scale)
        return logits if self.cap is None else self.cap * logits.div_(self.cap).tanh_()

    def rows(self, logits_mb: float, matrices: int) -> int:
        """Number of rows of a block of which so many float32 matrices [row, vocabulary] are held at once in `logits_mb` MB
        (10^6 bytes); at least one."""
        return max(1, int(logits_mb * 1e6 / (4 * self.vocabulary * matrices)))


_known: weakref.WeakKeyDictionary[nn.Module, Head] = weakref.WeakKeyDictionary()


@torch.no_grad()
def head_of(model: PreTrainedModel) -> Head:
    """The head of a model. The factor and the cap that its configuration names are tried on two tokens, once: ways of writing
    them differ, and the logits must be those that the model gives itself. To be asked first outside of edits.

    Raises Refused for a model without output embeddings, or whose logits none of these gives."""
    if model in _known:
        return _known[model]
    module, config = model.get_output_embeddings(), model.config.get_text_config()
    if module is None:
        raise Refused(f"{type(model).__name__} has no output embeddings: it predicts no next token to compare.")
    named = [float(getattr(config, name)) for name in SCALES if getattr(config, name, None)]
    scales = [*named, *(1 / scale for scale in named), 1.0]
    caps = [*(float(getattr(config, name)) for name in CAPS if getattr(config, name, None)), None]
    was = [part for part in model.modules() if part.training]
    model.eval()
    try:
        ids = torch.tensor([[0, 1]], device=next(model.parameters()).device)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        own = model(input_ids=ids, use_cache=False).logits
    finally:
        for part in was:
            part.training = True
    tried = [Head(module, own.shape[-1], *one) for one in product(scales, caps)]
    errors = [float((head(hidden) - own.float()).abs().max()) for head in tried]
    least = min(range(len(tried)), key=errors.__getitem__)
    if errors[least] > 8 * torch.finfo(own.dtype).eps * float(own.abs().max()):
        raise Refused(
            f"{type(model).__name__} computes its logits otherwise than by output embeddings, a factor and a soft cap of its "
            f"last hidden vectors (they differ by {errors[least]:.3g} of {float(own.abs().max()):.3g}): choose another model."
        )
    _known[model] = tried[least]
    return tried[least]


def unembedding(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """The unembedding [vocabulary, width] as it is in memory, and the gain [width] of the final norm before it, in float32; 1
    where the model has no norm of a known name."""
    output = model.get_output_embeddings()
    if output is None:
        raise Refused(f"{type(model).__name__} has no unembedding: nothing that is written can be read as tokens.")
    weight = output.get_parameter("weight")
    probe = torch.ones_like(weight[0], dtype=torch.float32)
    norm = next((part for name, part in model.base_model.named_children() if name in FINAL_NORMS), None)
    if norm is None:
        return weight, probe
    # of mean 0 and root mean square 1: a norm leaves it, but for the gain, however that is parametrised
    probe[1::2] = -1.0
    dtype = next(norm.parameters()).dtype
    return weight, (norm(probe.to(dtype)) - norm(-probe.to(dtype))).float() / 2 * probe
