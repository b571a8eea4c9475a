"""Logits a block of rows at a time: those that the models give themselves, and never more of them than the setting allows.
Latents of a long document: once, and a block at a time beside that."""

import weakref
from functools import partial

import pytest
import torch
import transformers as hf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from real_tokenizers import real
from test_models import FAMILIES, GROUPED, IDS, SMALL
from tunediff.dictionary import L1, BatchTopK, Crosscoder, Normalisation, TranscoderAdapter
from tunediff.evaluations import Geometry, Given
from tunediff.evaluations.lora.costs import costs
from tunediff.evaluations.pair.tokenizers import Tokenizers
from tunediff.evaluations.reading.examples import Examples, peaks
from tunediff.evaluations.reading.fidelity import Fidelity
from tunediff.evaluations.reading.kl_patching import KLPatching
from tunediff.evaluations.reading.latent_scaling import LatentScaling
from tunediff.evaluations.reading.logit_effect import LogitEffect
from tunediff.evaluations.reading.segments import Segments
from tunediff.evaluations.transcoders.replacement import Replacement
from tunediff.generation import Asked, Response
from tunediff.generation.responses import surprise
from tunediff.hookpoints import decoder_layers
from tunediff.models import ModelPair, ModelSource, head_of, replaceable
from tunediff.objectives import Distillation, Imitation
from tunediff.schedules import Constant, Length
from tunediff.shapes import Finding, Refused, Table
from tunediff.text import Text
from tunediff.text.examples import MicroBatch, Step
from tunediff.toy import language

# -- the logits are the model's own ----------------------------------------------------------------------------------

LIKE = {
    **FAMILIES,
    "cohere": (hf.CohereConfig, hf.CohereForCausalLM, {**SMALL, "logit_scale": 0.25, "pad_token_id": 0}),
    "granite": (hf.GraniteConfig, hf.GraniteForCausalLM, {**SMALL, "logits_scaling": 6.0}),
    "phi": (hf.PhiConfig, hf.PhiForCausalLM, SMALL),
    "tied": (*FAMILIES["qwen2"][:2], {**FAMILIES["qwen2"][2], "tie_word_embeddings": True}),
    "capped": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM, {**GROUPED, "final_logit_softcapping": 0.3}),
}


def like(name, dtype=torch.float32):
    torch.manual_seed(0)
    config, kind, settings = LIKE[name]
    model = kind(config(**settings)).eval()
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(20)
        if head.bias is not None:
            head.bias.normal_()
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LIKE)
@torch.no_grad()
def test_the_head_gives_the_logits_of_the_model_whatever_its_family(name, dtype):
    model = like(name, dtype)
    own, hidden = model(input_ids=IDS).logits, model.base_model(input_ids=IDS).last_hidden_state.flatten(0, 1)
    head = head_of(model)
    tolerance = 1e-6 if dtype is torch.float32 else 0.02
    for rows in (1, 5, len(hidden)):
        blocks = torch.cat([head(some) for some in hidden.split(rows)]).view(own.shape)
        assert blocks.dtype is torch.float32 and head.vocabulary == own.shape[-1] == 64
        assert torch.allclose(blocks, own.float(), rtol=tolerance, atol=tolerance * float(own.abs().max()))
    assert (head.scale, head.cap) == {
        "cohere": (0.25, None), "granite": (1 / 6, None), "gemma2": (1.0, 30.0), "capped": (1.0, 0.3)
    }.get(name, (1.0, None))  # fmt: skip


@pytest.mark.parametrize("name", ["cohere", "granite", "gemma2", "capped", "phi"])
def test_gradients_of_a_scaled_and_of_a_capped_head_are_those_of_the_model(name):
    model = like(name)
    head = head_of(model)

    def gradients(logits):
        model.zero_grad()
        logits.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients(model(input_ids=IDS).logits)
    found = gradients(head(model.base_model(input_ids=IDS).last_hidden_state))
    assert found.keys() == expected.keys() and expected
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-4 * float(value.abs().max())), name


def test_a_model_is_asked_without_dropout_and_left_as_it_was_and_one_that_does_more_is_refused():
    model = like("gpt2")
    model.train()
    model.transformer.h[1].eval()
    before = [part.training for part in model.modules()]
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    head_of(model)
    assert torch.equal(torch.rand(1), drawn) and [part.training for part in model.modules()] == before
    masked = hf.BertLMHeadModel(
        hf.BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, is_decoder=True)
    )
    with pytest.raises(Refused, match="BertLMHeadModel computes its logits otherwise"):
        head_of(masked)


# -- never more of them than a block ---------------------------------------------------------------------------------

VOCABULARY, WIDTH, CONTEXT, ROOM = 151_936, 64, 2048, 12.0  # MB: four matrices of four rows


class Held(TorchDispatchMode):
    """Bytes of all tensors that live at once, at most, whose last dimension is as long as `columns` says, and none of whose
    dimensions is one of `weights`."""

    def __init__(self, columns, *weights):
        super().__init__()
        self.columns, self.weights, self.sizes, self.most = columns, set(weights), {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        of_mask = function is torch.ops.aten.sum.dim_IntList and args[0].dtype is torch.bool
        if of_mask and args[0].shape[-1] in self.columns:  # it makes int64 of the mask first
            self.most = max(self.most, sum(self.sizes.values()) + 8 * args[0].numel())
        for tensor in tree_iter(given):
            if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[-1] in self.columns:
                storage = tensor.untyped_storage()
                if not self.weights & {*tensor.shape} and storage.data_ptr() not in self.sizes:
                    self.sizes[storage.data_ptr()] = storage.nbytes()
                    self.most = max(self.most, sum(self.sizes.values()))
                    weakref.finalize(storage, self.sizes.pop, storage.data_ptr())
        return given


@pytest.fixture(scope="module")
def long_pair():
    """Two layers of each model, which are enough."""
    pair = ModelPair(*(ModelSource(str(real(name)), dtype="float32") for name in ("qwen", "r1_qwen"))).load()
    for role, model in pair.models.items():
        del decoder_layers(model)[2:]
        model.config.num_hidden_layers = pair.configs[role].num_hidden_layers = 2
    assert pair.embedded("base") == pair.embedded("tuned") == VOCABULARY
    return pair


def long_text():
    """A long prompt and a short response, the only tokens that are kept: whoever predicts others as well is found out."""
    row = {"thinking": "First this. " * 8, "answer": "So it is that. " * 8}
    rows = [{**row, "prompt": "word " * (CONTEXT - 150)}, {**row, "prompt": "learned"}]
    return Text(lambda: iter(rows), held_out=lambda key: "word" in key, context=CONTEXT, segments=["answer"])


def crosscoder(pair):
    kind = partial(Normalisation, kind="none")
    return Crosscoder(pair.streams("resid_post", 1), latents=24, sparsity=L1(0.0), normalisation=kind).eval()


def adapter(pair):
    made = TranscoderAdapter(pair.streams("mlp_in", "all", reads="adapter"), latents=8, sparsity=L1(0.0)).eval()
    pair.stand_beside(made)
    return made


def evaluated(evaluation, dictionary):
    def run(pair):
        given = Given(pair, long_text(), 10**6, logits_mb=ROOM)
        batch = given.held_out[0]
        assert batch.ids[0].shape[1] > CONTEXT - 200 and 20 < len(batch.token) < 60
        found = list(evaluation.run(given if dictionary is None else given.reading(dictionary(pair))))
        assert len(found) > 1 or found[0].columns

    return run


def learned(objective, model_of):
    """One step with its backward pass, in which the last tokens alone are learned."""

    def step(pair):
        model, ids = model_of(pair), torch.randint(1000, (1, CONTEXT))
        labels = ids.clone()
        labels[:, :-30] = -100
        micro_batch = MicroBatch(ids, torch.arange(CONTEXT)[None], labels)
        for term in objective.terms(0, Length(1, CONTEXT), 0):
            part = objective.part(model, micro_batch, term, Step([micro_batch], 30, CONTEXT))
            part.loss.backward()
            assert float(part.loss.detach()) > 0

    return step


def alone(pair):
    return ModelSource(str(real("r1_qwen")), dtype="float32").weights().requires_grad_(True)


def taught(objective):
    def model(pair):
        made = TranscoderAdapter(pair.streams("mlp_in", "all", reads="adapter"), latents=8, sparsity=L1(0.0))
        objective.teach(made, Constant())
        return replaceable(pair.models["tuned"], pair.models["base"], made)

    return model


def surprised(pair):
    asked, responses = [Asked("", [5] * (CONTEXT - 30))], [Response([7] * 30, "", True, False)]
    assert surprise(pair, "tuned", asked, responses, tokenizer=pair.tokenizers[0], logits_mb=ROOM)[0] > 0


def costs_of_the_whole_model(pair):
    given = Given(pair, long_text(), 10**6, logits_mb=ROOM)
    assert not costs(given, pair.streams("resid_post", 1)[0], [], [frozenset()]).sums[0, 0, :2].any()


DISTILLATION = Distillation(logits_mb=ROOM)
WORK = {
    "fidelity": evaluated(Fidelity(), crosscoder),
    "kl_patching": evaluated(KLPatching(best=4, draws=1), crosscoder),
    "logit_effect": evaluated(LogitEffect(), crosscoder),
    "replacement": evaluated(Replacement(), adapter),
    "tokenizers": evaluated(Tokenizers(), None),
    "lora_ablation": costs_of_the_whole_model,
    "surprise": surprised,
    "imitation": learned(Imitation(logits_mb=ROOM), alone),
    "distillation": learned(DISTILLATION, taught(DISTILLATION)),
}


@pytest.mark.parametrize("name", WORK)
def test_a_vocabulary_of_152_thousand_is_never_held_for_more_than_a_block_of_tokens(long_pair, name):
    # a column for each entry of the vocabulary, or for each that a tokenizer knows; the unembedding, transposed, is no logits
    with Held(range(151_000, 152_000), WIDTH) as held:
        WORK[name](long_pair)
    assert 0.4 * ROOM * 1e6 < held.most <= ROOM * 1e6


@pytest.mark.parametrize("evaluation", [Fidelity(), KLPatching(best=4, draws=1), Tokenizers(), LogitEffect(tokens=3)])
def test_the_size_of_a_block_changes_no_number_beyond_rounding(pair, evaluation):
    text = Text(lambda: language.rows(0, "trace"), held_out=0.1, context=256, window=16, tokens_per_batch=1024)

    def found(logits_mb):
        given = Given(pair, text, 600, logits_mb=logits_mb).reading(crosscoder(pair))
        items = list(evaluation.run(given))
        tables = {t.name: t.columns for t in items if isinstance(t, Table)}
        numbers = {f.name: f.value for f in items if isinstance(f, Finding) and f.value is not None}
        return numbers, tables.get("logit_effect", {}).get("effect", [])

    (one, effects), (whole, expected) = found(1e-9), found(512)  # a row at a time, and all at once
    assert one == pytest.approx(whole, rel=1e-4, abs=1e-5) and effects == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert len(one) > 3 or len(effects) > 100


# -- latents of a long document --------------------------------------------------------------------------------------

TOKENS, LATENTS = 5120, 3001
READ = {
    "latent_scaling": LatentScaling(),
    "segments": Segments(),
    "examples": Examples(strongest=2, quantiles=2, random=1),
    "geometry": Geometry(),  # by the statistics that all evaluations ask for
}
PATCHED = {"fidelity": Fidelity(), "kl_patching": KLPatching(best=4, draws=1)}  # many passes of a long document


def long_toy_text():
    row = next(row for row in language.rows(0, "trace") if row.get("thinking"))
    rows = [{"text": " ".join([row["thinking"]] * 400)}, {"text": "learned"}]  # one segment
    return Text(lambda: iter(rows), held_out=lambda key: key != "learned", context=TOKENS, long="first")


def long_given(pair):
    kind = partial(Normalisation, kind="none")
    made = Crosscoder(pair.streams("resid_post", 1), latents=LATENTS, sparsity=BatchTopK(8), normalisation=kind).eval()
    with torch.no_grad():
        made.sparsity.threshold.fill_(1e-3)
    return Given(pair, long_toy_text(), 10**4).reading(made.requires_grad_(False))


@pytest.mark.parametrize("name", [*READ, *(pytest.param(name, marks=pytest.mark.slow) for name in PATCHED)])
def test_latents_of_a_long_document_are_held_once_and_little_beside_them(pair, name):
    given = long_given(pair)
    assert len(given.held_out[0].token) > 0.9 * TOKENS
    with Held([LATENTS]) as held:
        found = list({**READ, **PATCHED}[name].run(given))
    assert any(isinstance(one, Table) for one in found)
    whole = 4 * TOKENS * LATENTS
    assert 0.9 * whole < held.most < 2.8 * whole, held.most / whole


def test_a_long_document_is_encoded_as_it_is_at_once(pair):
    given = long_given(pair)
    (reading,) = given.readings("once")
    (rows,) = (rows for _, rows, _ in given.activations("once"))
    whole = given.dictionary.encode(rows) * reading.admitted[:, None]
    assert torch.allclose(reading.latents, whole, rtol=1e-4, atol=1e-5) and whole.any()
    peak, at = peaks(reading)
    assert torch.allclose(peak[0], whole.amax(0), rtol=1e-4, atol=1e-5)
    assert torch.equal(reading.latents[at[0], torch.arange(LATENTS)], peak[0])
