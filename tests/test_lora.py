"""A pair over one set of weights with an adapter on and off, and what its adapters read."""

import dataclasses
import json

import peft
import pytest
import torch
from transformers import Qwen2ForCausalLM

from test_models import batch_of
from tunediff.edits import Add, Axes, Clamp, Directions, Edit, Sequences, Whole, Zero
from tunediff.hookpoints import LORA, Point, lora_adapters, reading, writing
from tunediff.models import ModelPair, ModelSource, PairError
from tunediff.shapes import Refused, Stream
from tunediff.text import patterns

MODULES = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()


def save_adapter(folder, base, *, rank=1, modules=tuple(MODULES), layers=None, seed=0, **settings):
    """A LoRA adapter whose B is not zero, so that it changes the model."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(
        r=rank, lora_alpha=16, use_rslora=True, target_modules=list(modules), layers_to_transform=layers, **settings
    )
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(folders, tmp_path_factory):
    return save_adapter(tmp_path_factory.mktemp("adapter"), folders["base"])


def written(parts, values):
    """What A x [..., rank] adds to its module's output: scale * B A x."""
    return torch.nn.functional.linear(values, parts.up.weight) * parts.scale


def pair_of(folders, adapter, **settings):
    base = ModelSource(str(folders["base"]), dtype="float32")
    return ModelPair(base, ModelSource(str(folders["base"]), dtype="float32", adapter=str(adapter), **settings))


@pytest.fixture(scope="module")
def adapted(folders, adapter):
    return pair_of(folders, adapter).load()


def test_a_pair_by_adapter_holds_one_set_of_weights(adapted):
    base, tuned = adapted.models["base"], adapted.models["tuned"]
    held = {parameter.data_ptr() for parameter in base.parameters()}
    own = [name for name, parameter in tuned.named_parameters() if parameter.data_ptr() not in held]
    assert own and all("lora_" in name for name in own)
    assert not lora_adapters(base) and len(lora_adapters(tuned)) == 7 * 3
    assert not any("lora" in name for name, _ in base.named_modules())


def test_the_base_is_what_it_was_and_the_adapter_changes_the_other(adapted, folders):
    ids = torch.arange(3, 40)[None]
    plain = Qwen2ForCausalLM.from_pretrained(folders["base"], dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(adapted.models["base"](ids).logits, plain(ids).logits)
        assert not torch.allclose(adapted.models["tuned"](ids).logits, plain(ids).logits, atol=1e-3)


def test_merged_and_unmerged_pairs_give_equal_activations(adapted, folders, adapter):
    merged = pair_of(folders, adapter, merged=True).load()
    batch = batch_of(adapted)
    for layer in range(3):
        streams = adapted.streams("resid_post", layer)
        assert streams == merged.streams("resid_post", layer)
        for one, other in zip(adapted.read(batch, streams), merged.read(batch, streams), strict=True):
            assert torch.allclose(one, other, atol=1e-5)
    with pytest.raises(PairError, match="merged=false"):
        merged.streams(LORA, "all", reads="tuned")


@pytest.mark.parametrize("module", MODULES)
def test_the_stream_times_scale_and_b_is_what_the_adapter_adds_to_its_module(adapted, module):
    """scale B A x = output with the adapter - output without it, for every module of a type."""
    model, ids = adapted.models["tuned"], torch.arange(3, 40)[None]
    mine = [parts for parts in lora_adapters(model) if parts.adapter.module == module]
    assert len(mine) == 3
    seen = {}

    def keep(parts):
        return parts.module.register_forward_hook(
            lambda _, inputs, output: seen.update({str(parts.adapter): (inputs[0], output)})
        )

    handles = [keep(parts) for parts in mine]
    last = lora_adapters(model)[-1].adapter
    with torch.no_grad(), reading(model, [Point(LORA, last.layer)], stop=False) as read:
        model(ids)
    for handle in handles:
        handle.remove()
    stream = read[Point(LORA, last.layer)]
    assert stream.shape == (1, 37, 21)
    for parts in mine:
        given, output = seen[str(parts.adapter)]
        with torch.no_grad():
            without = parts.module.base_layer(given)
        added = written(parts, stream[..., parts.adapter.columns])
        assert added.abs().max() > 1e-3
        assert torch.allclose(output - without, added, atol=1e-5)


def test_adapters_stand_by_layer_and_then_gate_up_down_q_k_v_o(adapted, folders, tmp_path):
    order = "gate_proj up_proj down_proj q_proj k_proj v_proj o_proj".split()
    expected = [f"{layer}.{module}" for layer in range(3) for module in order]
    assert [str(one) for one in adapted.sources["tuned"].adapters] == expected
    assert [str(parts.adapter) for parts in lora_adapters(adapted.models["tuned"])] == expected
    place = save_adapter(tmp_path, folders["base"], rank=4, modules=("v_proj", "up_proj"), layers=[0, 2])
    pair = pair_of(folders, place).load()
    found = [(str(one), one.columns) for one in pair.sources["tuned"].adapters]
    assert found == [
        ("0.up_proj", slice(0, 4)),
        ("0.v_proj", slice(4, 8)),
        ("2.up_proj", slice(8, 12)),
        ("2.v_proj", slice(12, 16)),
    ]
    assert pair.streams(LORA, "all", reads="tuned") == [Stream("tuned", LORA, 2, 16)]
    assert pair.read(batch_of(pair), pair.streams(LORA, "all", reads="tuned"))[0].shape[1] == 16


def test_reading_adapters_beside_a_layer_gives_both(adapted):
    batch = batch_of(adapted)
    streams = [*adapted.streams(LORA, "all", reads="tuned"), *adapted.streams("resid_post", 1)]
    together = adapted.read(batch, streams)
    assert torch.equal(together[0], adapted.read(batch, streams[:1])[0])
    assert torch.equal(together[2], adapted.read(batch, streams[2:])[0])


def known(adapted):
    return Sequences.of_prompts(adapted.tokenizers[0], [list(range(3, 30)), list(range(5, 20))])


def logits(adapted, edits):
    with torch.no_grad():
        return adapted.run("tuned", known(adapted), edits)


def test_adapters_at_zero_are_the_base_model(adapted):
    at = adapted.streams(LORA, "all", reads="tuned")[0]
    with torch.no_grad():
        base, _ = adapted.run("base", known(adapted))
    zeroed, changes = logits(adapted, [Edit(at, Whole(), Zero())])
    real = known(adapted).real
    assert torch.allclose(zeroed[real], base[real], atol=1e-5)
    assert (changes[0][real] > 0).all()
    every = Axes(torch.arange(at.width), torch.ones(at.width), torch.zeros(at.width))
    assert torch.equal(logits(adapted, [Edit(at, every, Zero())])[0], zeroed)


def test_zero_on_one_adapter_is_the_model_without_it(adapted):
    at, parts = adapted.streams(LORA, "all", reads="tuned")[0], lora_adapters(adapted.models["tuned"])[9]
    one = Axes(torch.tensor([9]), torch.ones(1), torch.zeros(1))
    edited, _ = logits(adapted, [Edit(at, one, Zero())])
    kept = parts.up.weight.detach().clone()
    parts.up.weight.data.zero_()
    without, _ = logits(adapted, [])
    parts.up.weight.data.copy_(kept)
    real = known(adapted).real  # an edit leaves padding alone
    assert torch.allclose(edited[real], without[real], atol=1e-5)
    assert not torch.allclose(edited[real], logits(adapted, [])[0][real])


def test_steering_through_the_adapters_adds_value_times_scale_times_b(adapted):
    """A decoder row v of an SAE adds sum over adapters of v_a scale B_a (arXiv 2511.06739): on one module seen directly."""
    at, every = adapted.streams(LORA, "all", reads="tuned")[0], lora_adapters(adapted.models["tuned"])
    row = torch.randn(1, at.width, generator=torch.Generator().manual_seed(0))
    steered = Edit(at, Directions(row, torch.ones(1), torch.zeros(1)), Add(2.0))
    outputs, first = [], every[3]
    assert str(first.adapter) == "0.q_proj"  # the first that is computed: what it is given is the same
    handle = first.module.register_forward_hook(lambda _, __, output: outputs.append(output))
    (_, changes), _ = logits(adapted, [steered]), logits(adapted, [])
    handle.remove()
    added = written(first, 2.0 * row[:, first.adapter.columns])
    change, real = outputs[0] - outputs[1], known(adapted).real
    assert torch.allclose(change[real], added.expand_as(change[real]), atol=1e-5) and (change[~real] == 0).all()
    assert torch.allclose(changes[0][real], 2.0 * row.norm(), rtol=1e-4)


def test_what_all_adapters_read_cannot_be_asked_while_they_run(adapted):
    at = adapted.streams(LORA, "all", reads="tuned")[0]
    row = torch.ones(1, at.width)
    with pytest.raises(Refused, match="each adapter as it is computed"):
        logits(adapted, [Edit(at, Directions(row, torch.ones(1), torch.zeros(1)), Clamp(1.0))])


def test_writing_the_readings_back_changes_nothing(adapted):
    model, ids = adapted.models["tuned"], torch.arange(3, 40)[None]
    point = Point(LORA, 2)
    with torch.no_grad(), reading(model, [point], stop=False) as read:
        clean = model(ids).logits
    with torch.no_grad(), writing(model, point, lambda _: read[point]):
        assert torch.allclose(model(ids).logits, clean, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),  # PEFT would rewrite the base's own weights
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"peft_type": "NONE_SUCH"}, "none that PEFT"),
    ],
)
def test_an_adapter_that_is_more_than_low_rank_products_is_refused(folders, adapter, tmp_path, change, words):
    for file in adapter.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(PairError, match=words):
        pair_of(folders, tmp_path).load()


@pytest.mark.timeout(60)  # seconds; PEFT would match these for ever
def test_modules_that_an_adapter_names_by_an_expression_are_those_and_one_without_end_is_refused(
    folders, adapter, tmp_path, monkeypatch
):
    patterns.compiled.cache_clear()
    monkeypatch.setattr(patterns, "SECONDS", 0.3)
    for file in adapter.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((adapter / "adapter_config.json").read_text())
    whole = dict(pair_of(folders, adapter).load().models["tuned"].named_parameters())

    def load(**change):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
        return pair_of(folders, tmp_path).load().models["tuned"]

    named = load(
        target_modules=rf".*\.({'|'.join(MODULES)})", rank_pattern={"layers.0.*": 1}, alpha_pattern={"q_proj": 16}
    )
    assert {name: value.tolist() for name, value in named.named_parameters()} == {
        name: value.tolist() for name, value in whole.items()
    }
    scales = [(str(parts.adapter), parts.scale) for parts in lora_adapters(load(alpha_pattern={"q_proj": 32}))]
    assert {scale for name, scale in scales if "q_proj" in name} == {32.0}
    assert {scale for name, scale in scales if "q_proj" not in name} == {16.0}
    endless = r"(?:[\w.]|[\w.]|[\w.][\w.])+(?<=!)"
    for setting in ({"target_modules": endless}, {"alpha_pattern": {endless: 1}}):
        with pytest.raises(Refused, match=f"{next(iter(setting))}, .*takes longer than any"):
            load(**setting)
    with pytest.raises(PairError, match="layers_pattern="):
        load(layers_pattern=[endless], layers_to_transform=[0])


def test_an_adapter_of_the_hub_is_read_at_its_revision_and_never_from_a_pickle(folders, adapter, tmp_path, monkeypatch):
    asked = []

    def download(repository, name, *, revision):
        asked.append((repository, name, revision))
        if not (adapter / name).exists() or revision == "old":
            raise FileNotFoundError(name)
        return str(adapter / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    base = ModelSource(str(folders["base"]), dtype="float32")
    theirs = dataclasses.replace(base, adapter="someone/adapter", adapter_revision="abc")
    assert len(ModelPair(base, theirs).streams(LORA, "all", reads="tuned")) == 1
    assert ModelPair(base, theirs).load().shares_weights("tuned")
    assert set(asked) == {
        ("someone/adapter", f"adapter_{file}", "abc") for file in ("config.json", "model.safetensors")
    }
    with pytest.raises(PairError, match="Cannot load the adapter 'someone/adapter' at old"):
        dataclasses.replace(theirs, adapter_revision="old").weights()
    for file in adapter.iterdir():
        (tmp_path / file.name.replace("safetensors", "bin")).write_bytes(file.read_bytes())
    with pytest.raises(PairError, match="only safetensors are read"):
        dataclasses.replace(base, adapter=str(tmp_path)).weights()


def test_what_is_wrong_with_an_adapter_is_said(folders, adapter, adapted, tmp_path):
    with pytest.raises(PairError, match="no local folder with adapter_config.json"):
        pair_of(folders, tmp_path / "nothing").load()
    wide = ModelSource(str(folders["wide"]), dtype="float32", adapter=str(adapter))
    with pytest.raises(PairError, match="does not fit|was made for another"):
        ModelPair(wide.without_adapter, wide).load()
    with pytest.raises(PairError, match="only one of the models has adapters"):
        adapted.streams(LORA, "all")
    with pytest.raises(PairError, match="all layers side by side"):
        adapted.streams(LORA, 1, reads="tuned")
    with pytest.raises(PairError, match="has no adapters to read"):
        adapted.streams(LORA, "all", reads="base")
