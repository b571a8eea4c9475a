"""Two models, adapters, tokens and cutoffs -> what each term of the loss came to at every step of the authors' own trainer
(arXiv 2602.20904), run from a checkout of their code, of which nothing is here. It was written for transformers 4.57; names
that changed since are given back while it runs. For bench/adapters.py and tests/test_peers.py."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import get_constant_schedule, masking_utils

from tunediff.dictionary import TranscoderAdapter
from tunediff.shapes import BASE, TUNED
from tunediff.text import Batches


def model_of(folder: str, models: Mapping[str, torch.nn.Module], adapter: TranscoderAdapter) -> torch.nn.Module:
    """Their model: the tuned one with copies of the base's MLPs and of the adapter, which alone learns."""
    place = str(Path(folder).expanduser())
    if place not in sys.path:
        sys.path.insert(0, place)
    from models.qwen2_transcoder import Qwen2ConfigWithTranscoder, Qwen2ForCausalLMWithTranscoder

    tuned, base = models[TUNED], models[BASE]
    sizes = {name: value for name, value in tuned.config.to_dict().items() if name != "model_type"}
    config = Qwen2ConfigWithTranscoder(
        transcoder_n_features=adapter.latents_per_layer, transcoder_dec_bias=True, **sizes
    )
    with torch.device(tuned.device):
        model = Qwen2ForCausalLMWithTranscoder(config).to(tuned.dtype)
    model.load_state_dict(tuned.state_dict(), strict=False)
    for layer, donor, transcoder in zip(model.model.layers, base.model.layers, adapter.layers, strict=True):
        layer.mlp.load_state_dict(donor.mlp.state_dict(), strict=False)
        layer.mlp.transcoder_enc.weight.data.copy_(transcoder.W_enc.data.T)
        layer.mlp.transcoder_enc.bias.data.copy_(transcoder.b_enc.data)
        layer.mlp.transcoder_dec.weight.data.copy_(transcoder.W_dec.data.T)
        layer.mlp.transcoder_dec.bias.data.copy_(transcoder.b_dec.data)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("transcoder" in name)
    return model


def epoch(
    model: torch.nn.Module,
    tuned: torch.nn.Module,
    batches: Batches,
    cutoffs: Sequence[int],
    gauge,
    *,
    coefficient: float,
    bridge: float,
    learning_rate: float,
) -> list[dict[str, float | None]]:
    """Their train_epoch, with what it counts and logs at every step; a cutoff a step. gauge.begin() and gauge.end() lie
    around each step. The penalty is given with its coefficient, the other terms without their weights."""
    from training import config as settings
    from training import train

    chosen = settings.ExperimentConfig(
        transcoder=settings.TranscoderConfig(n_features=model.config.transcoder_n_features, l1_weight=coefficient),
        bridging=settings.BridgingConfig(lambda_bridge=bridge),
        use_wandb=False,
    )
    told: list[dict[str, float | None]] = []

    class Loader:
        def __len__(self):
            return len(cutoffs)

        def __iter__(self):
            for n, cutoff in enumerate(cutoffs):
                chosen.bridging.sampling = [cutoff]
                ids = batches[n].micro_batches[0].ids
                gauge.begin()
                yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
                gauge.end()

    step = train.train_step_bridging

    def noted(*arguments):
        found, cutoff = step(*arguments), cutoffs[len(told)]
        told.append({
            "kl": found["train/kl_to_ref"],
            "nmse": found["bridging/nmse"],
            "penalty": coefficient * found["train/sparsity"],
            "kl_adapter_first": found.get(f"bridging_layerwise/a2r_kl_layer_{cutoff}"),
            "kl_tuned_first": found.get(f"bridging_layerwise/r2a_kl_layer_{cutoff}"),
        })  # fmt: skip
        return found

    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=learning_rate, weight_decay=0.0)  # as their setup_training has it
    schedule = get_constant_schedule(optimizer)
    train.train_step_bridging = noted
    try:
        with names_of_then(model, tuned):
            train.train_epoch(model, tuned.eval(), None, Loader(), optimizer, schedule, chosen, 0, 0, len(cutoffs), 0)
    finally:
        train.train_step_bridging = step
    return told


@contextmanager
def names_of_then(*models: torch.nn.Module):
    """Masks are made of `input_embeds` and a `cache_position`, and layers say what attention they have."""
    from training import forward_utils

    create = masking_utils.create_causal_mask

    def causal_mask(*, input_embeds, cache_position, **others):
        return create(inputs_embeds=input_embeds, **others)

    for model in models:
        for layer in model.model.layers:
            layer.attention_type = "full_attention"
    masking_utils.create_causal_mask = forward_utils.create_causal_mask = causal_mask
    try:
        yield
    finally:
        masking_utils.create_causal_mask = forward_utils.create_causal_mask = create
