"""Two models of one shape -> the tuned one with the base's MLPs (the hybrid), and that with transcoder adapters beside
them (arXiv 2602.20904, section 3), in no more memory than the two take:

    h' = h + Attn_tuned(h)        h'' = h' + MLP_base(LN_tuned h') + T(LN_tuned h')

Attention, norms, embeddings and head are the tuned model's, whatever its architecture. Each is a module of its own over
the tensors of the two, so that no switch can be left in the wrong position; only Replaceable has one, for training and
for replacing part of a model, and whoever runs it says how every time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from tunediff.dictionary import TranscoderAdapter
from tunediff.hookpoints import decoder_layers
from tunediff.models.files import PairError
from tunediff.models.lora import twin
from tunediff.shapes import ADAPTER, TUNED


class AdaptedMLP(nn.Module):
    """An MLP and what stands beside it; both see the same input [..., width]."""

    def __init__(self, mlp: nn.Module, transcoder: nn.Module):
        super().__init__()
        self.mlp, self.transcoder = mlp, transcoder

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x) + self.transcoder(x)


class Replaceable(nn.Module):
    """The tuned model's MLP, the base's, or the base's with its adapter: `choice` is tuned, hybrid or adapter."""

    def __init__(self, tuned: nn.Module, adapted: AdaptedMLP):
        super().__init__()
        self.tuned, self.adapted = tuned, adapted
        self.choice = ADAPTER

    def forward(self, x: Tensor) -> Tensor:
        if self.choice == TUNED:
            return self.tuned(x)
        return self.adapted(x) if self.choice == ADAPTER else self.adapted.mlp(x)


def hybrid(tuned: PreTrainedModel, base: PreTrainedModel) -> PreTrainedModel:
    """The tuned model with the base's MLPs, over the tensors of both. Raises PairError where those of one do not fit
    into the other."""
    ours, theirs = decoder_layers(tuned), decoder_layers(base)
    width, other = (model.config.get_text_config().hidden_size for model in (tuned, base))
    if (len(ours), width) != (len(theirs), other):
        raise PairError(
            f"The base's MLPs cannot stand in the tuned model: {len(theirs)} layers of width {other} against {len(ours)} of "
            f"width {width}."
        )
    if tuned.dtype != base.dtype:
        raise PairError(
            f"The base's MLPs cannot stand in the tuned model: they are {base.dtype}, and it is {tuned.dtype}. Set one dtype, "
            "model_pair.base.dtype=<that of tuned>."
        )
    made = twin(tuned)
    for layer, donor in zip(decoder_layers(made), theirs, strict=True):
        layer.mlp = twin(donor.get_submodule("mlp"))
    return made


def adapted(hybrid: PreTrainedModel, adapter: TranscoderAdapter) -> PreTrainedModel:
    """The hybrid with the adapter beside its MLPs, over the tensors of both; the adapter goes where the model is.
    Raises PairError for an adapter of another shape."""
    made = twin(hybrid)
    for layer, transcoder in zip(decoder_layers(made), _beside(hybrid, adapter), strict=True):
        layer.mlp = AdaptedMLP(layer.get_submodule("mlp"), transcoder)
    return made


def replaceable(tuned: PreTrainedModel, base: PreTrainedModel, adapter: TranscoderAdapter) -> PreTrainedModel:
    """The tuned model whose MLPs can be replaced layer by layer: see `replacing`."""
    made = adapted(hybrid(tuned, base), adapter)
    for layer, own in zip(decoder_layers(made), decoder_layers(tuned), strict=True):
        beside = layer.get_submodule("mlp")
        assert isinstance(beside, AdaptedMLP)
        layer.mlp = Replaceable(twin(own.get_submodule("mlp")), beside)
    return made


def switch_mlps(model: nn.Module, choices: Sequence[str]) -> None:
    """Makes each layer of a replaceable model compute its MLP as the choice for it says, from here on: tuned, hybrid or
    adapter."""
    for layer, choice in zip(decoder_layers(model), choices, strict=True):
        switch = layer.get_submodule("mlp")
        assert isinstance(switch, Replaceable)
        switch.choice = choice


@contextmanager
def replacing(model: nn.Module, choices: Sequence[str]) -> Iterator[None]:
    """Context in which the MLPs are those of `choices`; afterwards every layer has its adapter again."""
    switch_mlps(model, choices)
    try:
        yield
    finally:
        switch_mlps(model, [ADAPTER] * len(choices))


def _beside(model: PreTrainedModel, adapter: TranscoderAdapter) -> list[nn.Module]:
    layers, width = decoder_layers(model), model.config.get_text_config().hidden_size
    if (len(adapter.layers), set(adapter.widths)) != (len(layers), {width}):
        raise PairError(
            f"The transcoder adapter has {len(adapter.layers)} layers of width {adapter.widths[0]}, the model {len(layers)} of "
            f"width {width}: it was trained on another pair."
        )
    return [twin(one) for one in adapter.to(next(model.parameters()).device).layers]
