"""Hidden vectors -> logits by the head of a causal language model, a chunk of tokens at a time: logits of a long sequence
over a whole vocabulary are larger than anything else in memory. Knows no loss."""

from __future__ import annotations

from torch import Tensor, nn

from tunediff.models import PreTrainedModel
from tunediff.shapes import Refused

SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")  # Cohere, Granite, Falcon-H1 scale after the head


def check_head(model: PreTrainedModel) -> None:
    """Raises Refused for a model whose logits are more than its head's output and a soft cap (Gemma 2)."""
    config = model.config.get_text_config()
    found = {name: getattr(config, name) for name in SCALES if getattr(config, name, None) not in (None, 1.0)}
    if model.get_output_embeddings() is None or found:
        why = f"scales its logits ({found})" if found else "has no output embeddings"
        raise Refused(f"{type(model).__name__} {why}, which training does not follow: choose another model.")


def check_chunk(chunk: int) -> int:
    if chunk < 1:
        raise Refused(f"objective.chunk={chunk}: give a number of tokens from 1.")
    return chunk


def cap_of(model: PreTrainedModel) -> float | None:
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def logits_of(head: nn.Module, hidden: Tensor, cap: float | None) -> Tensor:
    """Logits [token, vocabulary] in float32 of hidden vectors [token, width], with the soft cap of Gemma 2 where given."""
    logits = head(hidden).float()
    return logits if cap is None else cap * (logits / cap).tanh()
