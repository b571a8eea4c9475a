"""What adapters carry: laws on a tiny pair, and a planted pair whose adapters of one layer's MLP repair a broken model."""

import functools
import itertools

import pytest
import safetensors.torch
import torch
from transformers import Qwen2ForCausalLM

from conftest import logits_of
from test_lora import MODULES, pair_of, save_adapter
from tunediff.benchmarks import Task
from tunediff.evaluations import Given, LoraAblation
from tunediff.evaluations.lora import ablation as lora_ablation
from tunediff.evaluations.lora.ablation import _each, _measured
from tunediff.evaluations.lora.costs import Costs, costs, cut
from tunediff.evaluations.lora.groups import BY, lora_groups, random_groups, removal
from tunediff.files import located
from tunediff.generation import Batched, Decoding
from tunediff.hookpoints import LORA
from tunediff.models import ModelPair, ModelSource
from tunediff.shapes import BASE, TUNED, Figure, Finding, Note, Refused, Table
from tunediff.text import Text
from tunediff.toy import language

MLP = ("gate_proj", "up_proj", "down_proj")
ALIKE = {"base": "{question}", "tuned": "{question}"}


def toy_task(prompts=ALIKE):
    rows = functools.partial(language.benchmark, 0, 60)
    return {"toy": Task(rows, question="question", answer="answer", prompts=prompts)}


def ablation(**settings):
    own = {"by": ("layer", "module", "type"), "only": True, "random": 1}
    settings = {"tasks": None, "problems": None, **own, **settings}
    return LoraAblation(decoding=Decoding(tokens=6), engine=Batched(64), **settings)


def text_of(kind="trace"):
    return Text(lambda: itertools.islice(language.rows(0, kind), 100), held_out=0.1, context=256, window=16)


def measured(pair, evaluation=None, *, folder=None, tokens=400, tokens_per_batch=256, kind="trace"):
    trained = Given(pair, text_of(kind), tokens, tokens_per_batch, folder)
    found = list((evaluation or ablation()).run(trained))
    for figure in (item for item in found if isinstance(item, Figure)):
        figure.check()
    findings = {f.name.removeprefix("lora_ablation/"): f for f in found if isinstance(f, Finding)}
    tables = {t.name: t.columns for t in found if isinstance(t, Table)}
    return findings, tables, [n.text for n in found if isinstance(n, Note)]


@pytest.fixture(scope="module")
def adapted(folders, tmp_path_factory):
    return pair_of(folders, save_adapter(tmp_path_factory.mktemp("adapter"), folders["base"])).load()


@pytest.fixture(scope="module")
def repaired(tmp_path_factory):
    """The embedded base, broken in the MLP of layer 1; the adapters there repair it, and all others are zero."""
    whole, place = located("pkg://tunediff.toy/weights/base"), tmp_path_factory.mktemp("repaired")
    save_adapter(place / "adapter", whole)
    tensors = safetensors.torch.load_file(place / "adapter" / "adapter_model.safetensors")
    model = Qwen2ForCausalLM.from_pretrained(whole, dtype=torch.float32)
    modules = dict(model.named_modules())
    for key in [key for key in tensors if "lora_B" in key]:
        name = key.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
        if ".layers.1.mlp." not in name:
            tensors[key].zero_()
            continue
        tensors[key] *= 30
        with torch.no_grad():
            modules[name].weight -= 16 * tensors[key] @ tensors[key.replace("lora_B", "lora_A")]
    safetensors.torch.save_file(tensors, place / "adapter" / "adapter_model.safetensors")
    model.save_pretrained(place / "broken")
    ModelSource(whole).tokenizer().save_pretrained(place / "broken")
    return pair_of({"base": place / "broken"}, place / "adapter").load()


def parts_of(pair):
    return pair.streams(LORA, "all", reads=TUNED)[0], pair.sources[TUNED].adapters


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", BY)
def test_every_adapter_is_in_exactly_one_group_of_a_kind(adapted, by):
    _, adapters = parts_of(adapted)
    groups = lora_groups(adapters, [by])
    assert sorted(place for group in groups for place in group.members) == list(range(len(adapters)))
    sizes = {"layer": [7] * 3, "module": [3] * 7, "type": [9, 12], "layer_type": [3, 4] * 3}
    assert [len(group.members) for group in groups] == sizes[by]
    for group in groups:
        assert {BY[by](adapters[place]) for place in group.members} == {group.name}


def test_random_groups_have_the_size_asked_for_and_depend_on_no_other_size():
    some, more = random_groups(28, [7], 3, seed=1), random_groups(28, [16, 7, 28, 7, 0], 3, seed=1)
    assert [len(group.members) for group in more] == [7] * 3 + [16] * 3  # nothing can be drawn of 28 from 28
    assert some == more[:3] and len({group.members for group in some}) == 3
    assert some != random_groups(28, [7], 3, seed=2)


# -- costs -------------------------------------------------------------------------------------------------------------


def test_without_any_adapter_the_model_is_the_base_exactly(adapted):
    at, adapters = parts_of(adapted)
    trained = Given(adapted, text_of(), 400, 256)
    everything = frozenset(range(len(adapters)))
    tokens, sums = costs(trained, at, adapters, [frozenset(), everything])
    for batch in trained.held_out:
        with cut(trained, at, adapters, everything):
            assert torch.equal(logits_of(adapted, TUNED, batch), logits_of(adapted, BASE, batch))
    full, ablated = (lambda batch, role=role: logits_of(adapted, role, batch) for role in (TUNED, BASE))
    divergences, ce, count = naive(trained, full, ablated)
    assert count == tokens.sum()
    assert torch.allclose(sums[:, 1, :2].sum(0), divergences, rtol=1e-5)
    assert float(sums[:, 1, 2].sum()) == pytest.approx(ce, rel=1e-6)
    assert (sums[:, 0, :2] == 0).all() and sums[:, 1, :2].sum() > 0.01


def naive(trained, full_of, ablated):
    """KL(full || ablated), KL(ablated || full) and cross-entropy, token by token in float64, and how many tokens."""
    divergences, entropy, count = torch.zeros(2, dtype=torch.float64), 0.0, 0
    for batch in trained.held_out:
        full, other = full_of(batch).double(), ablated(batch).double()
        for sequence, position in zip(batch.sequence.tolist(), batch.position.tolist(), strict=True):
            if position == 0:
                continue
            p, q = (torch.distributions.Categorical(logits=some[sequence, position - 1]) for some in (full, other))
            kl = torch.distributions.kl_divergence
            divergences += torch.stack([kl(p, q), kl(q, p)])
            entropy -= float(q.log_prob(batch.ids[0][sequence, position]))
            count += 1
    return divergences, entropy, count


def test_both_divergences_of_a_group_are_those_of_the_model_whose_weights_lack_it(adapted, folders, tmp_path):
    _, adapters = parts_of(adapted)
    pair = pair_of(folders, save_adapter(tmp_path, folders["base"])).load()
    trained = Given(pair, text_of(), 200, 256)
    findings, _, _ = measured(pair, ablation(by=["layer"], only=False), tokens=200)
    full = {id(batch): logits_of(pair, TUNED, batch) for batch in trained.held_out}
    weights = {name: value for name, value in pair.models[TUNED].named_parameters() if "lora_B" in name}
    for name, value in weights.items():
        if ".layers.1." in name:
            value.data.zero_()
    kept = {id(batch): logits_of(pair, TUNED, batch) for batch in trained.held_out}

    divergences, ce, count = naive(trained, lambda batch: full[id(batch)], lambda batch: kept[id(batch)])
    of = [findings[f"layer/1/{name}"] for name in ("kl_full_ablated", "kl_ablated_full", "ce")]
    assert [f.value for f in of] == pytest.approx([*(divergences / count).tolist(), ce / count], rel=1e-4)
    assert all(f.low < f.value < f.high for f in of)
    assert findings["layer/1/excess"].value == pytest.approx(of[2].value - findings["whole/full/ce"].value, abs=1e-9)


def test_what_is_scored_is_what_writes_under_the_edit(adapted):
    """The same group left out by a hook in scoring and by an edit in generation."""
    from tunediff.edits import Sequences

    at, adapters = parts_of(adapted)
    trained = Given(adapted, text_of(), 100, 256)
    members, batch = frozenset([2, 9, 17]), trained.held_out[0]
    with cut(trained, at, adapters, members):
        scored = logits_of(adapted, TUNED, batch)
    known = Sequences(adapted.tokenizers[0], batch.ids[0], batch.mask[0], torch.zeros_like(batch.mask[0]))
    with torch.no_grad():
        edited, _ = adapted.run(TUNED, known, [removal(at, adapters, members)])
    real = batch.mask[0].bool()
    assert torch.allclose(scored[real], edited[real], atol=1e-5)


def test_a_group_is_measured_once_though_it_is_asked_for_twice(adapted, monkeypatch):
    """Leaving one of two types out leaves the other alone; the full model runs once a batch."""
    passes, hidden = [], adapted.last_hidden
    monkeypatch.setattr(adapted, "last_hidden", lambda *given: passes.append(given[0]) or hidden(*given))
    findings, tables, _ = measured(adapted, ablation(by=["type"], random=0))
    batches = len(Given(adapted, text_of(), 400, 256).held_out)
    assert passes == [TUNED] * 4 * batches  # full, none, without mlp, without attention
    assert findings["type/mlp/ce"].value == findings["only_type/attention/ce"].value
    assert len(tables["lora_ablation"]["group"]) == 6 and "type/mlp/over_random" not in findings


def test_the_order_of_groups_and_the_batching_change_nothing(adapted):
    one, _, _ = measured(adapted, ablation(by=["layer", "type"], only=False), tokens=10**6)
    other, _, _ = measured(adapted, ablation(by=["type", "layer", "type"], only=False), tokens=10**6)
    assert {name: f.value for name, f in one.items()} == {name: f.value for name, f in other.items()}
    again = ablation(by=["layer", "type"], only=False)
    together, _, _ = measured(adapted, again, tokens=10**6, tokens_per_batch=4096)
    for name, finding in together.items():
        assert finding.value == pytest.approx(one[name].value, rel=1e-4, abs=1e-6), name


def test_an_interrupted_measurement_goes_on_with_the_batches_that_are_missing(adapted, monkeypatch, tmp_path):
    evaluation = ablation(by=["type"], random=0)
    expected, _, _ = measured(adapted, evaluation)
    hidden, passes, most = adapted.last_hidden, [], 6  # four a batch

    def stopping(*given):
        if len(passes) == most:
            raise KeyboardInterrupt
        passes.append(given)
        return hidden(*given)

    monkeypatch.setattr(adapted, "last_hidden", stopping)
    with pytest.raises(KeyboardInterrupt):
        measured(adapted, evaluation, folder=tmp_path)
    (file,) = (tmp_path / "outputs").iterdir()
    first = file.read_text()
    assert len(first.splitlines()) == 1
    file.write_text(first + first[:50])  # what a process that was killed left of its last line
    batches = len(Given(adapted, text_of(), 400, 256).held_out)
    passes, most = [], 10**6
    found, _, _ = measured(adapted, evaluation, folder=tmp_path)
    assert len(passes) == 4 * (batches - 1) > 0 and file.read_text().startswith(first)
    assert {name: f[:4] for name, f in found.items()} == {name: f[:4] for name, f in expected.items()}
    passes.clear()
    measured(adapted, ablation(by=["layer"], random=0), folder=tmp_path)  # other groups are not mistaken for these
    assert len(passes) == 8 * batches and len(list((tmp_path / "outputs").iterdir())) == 2


# -- a planted truth -----------------------------------------------------------------------------------------------------


def test_the_adapters_that_repair_the_model_carry_the_whole_gain_and_the_others_cost_nothing(repaired):
    findings, tables, notes = measured(repaired, ablation(random=2), kind="steps", tokens=250, tokens_per_batch=1024)
    assert notes == []
    assert findings["whole/base/excess"].value > 0.5
    idle = ["type/attention", "layer/0", "layer/2", "layer/3", *(f"module/{m}" for m in MODULES if m not in MLP)]
    for group in [*idle, "only_type/mlp", "only_layer/1"]:
        for name in ("kl_full_ablated", "kl_ablated_full", "excess", "share"):
            assert findings[f"{group}/{name}"][1:4] == (0, None, None), (group, name)
    for group in ("type/mlp", "layer/1", "only_type/attention", "only_layer/0", "whole/base"):
        assert findings[f"{group}/share"].value == pytest.approx(1)
        for name in ("kl_full_ablated", "kl_ablated_full", "ce"):
            assert findings[f"{group}/{name}"].value == findings[f"whole/base/{name}"].value
    assert findings["layer/centre"].value == pytest.approx(1 / 3)  # layer 1 of 0 to 3
    assert findings["layer/1/over_random"].value > 1.2 and findings["layer/0/over_random"].value == 0
    rows = tables["lora_ablation"]
    drawn = [
        kl
        for kl, by, size, only in zip(
            *(rows[name] for name in ("kl_full_ablated", "by", "adapters", "only")), strict=True
        )
        if (by, size, only) == ("random", 7, False)
    ]
    assert len(drawn) == 2 and findings["random/7/kl_full_ablated"].value == pytest.approx(sum(drawn) / 2)
    layer = findings["layer/1/kl_full_ablated"].value
    assert findings["layer/1/over_random"].value == pytest.approx(2 * layer / sum(drawn))


def test_without_the_repair_problems_go_wrong_as_in_the_base_and_without_the_others_they_do_not(repaired, tmp_path):
    evaluation = ablation(by=[], tasks=toy_task())
    findings, tables, _ = measured(repaired, evaluation, folder=tmp_path, tokens=100)
    columns = tables["lora_ablation_conditions"]
    right = dict(zip(columns["condition"], columns["correct"], strict=True))
    assert right["full"] == right["without_attention"] > 8 and right["without_mlp"] == right["without_all"] < 3
    assert list(right)[:3] == ["full", "without_all", "without_mlp"] and "random/without_mlp" in right
    assert set(columns["reference"]) == {None, "full"}
    assert findings["toy/without_mlp/p"].value < 0.05 and findings["toy/without_attention/p"].value == 1
    assert findings["toy/without_attention/difference_from_none"].low > 0
    assert findings["toy/without_attention/p_from_none"].value < 0.05
    assert findings["toy/without_mlp/difference_from_none"].value == 0
    assert len(tables["lora_ablation_outputs"]["response"]) == 60 * len(right)


def test_a_base_that_is_asked_otherwise_stands_beside(repaired):
    asked = {"base": "{question} Answer:", "tuned": "{question}"}
    _, tables, _ = measured(repaired, ablation(by=[], random=0, tasks=toy_task(asked), problems=2), tokens=100)
    assert tables["lora_ablation_conditions"]["condition"][-1] == "base"


# -- what cannot be said -----------------------------------------------------------------------------------------------


def test_a_share_of_no_gain_is_not_given(adapted):
    findings, tables, (note,) = measured(adapted, ablation(by=["type"]))
    assert "no share of their gain can be given" in note
    assert set(tables["lora_ablation"]["share"]) == {None} and not any("share" in name for name in findings)


@pytest.mark.parametrize(("gains", "told"), [([9.0, 11.0, 10.0], True), ([-40.0, 60.0, 10.0], False)])
def test_a_share_is_given_only_where_the_whole_interval_of_the_gain_lies_above_zero(monkeypatch, gains, told):
    sums = torch.zeros(3, 2, 3, dtype=torch.float64)
    sums[:, :, 2] = 200.0  # cross-entropy of the full model, and of the base
    sums[:, 1, 2] += torch.tensor(gains, dtype=torch.float64)
    known = Costs(torch.full((3,), 100.0, dtype=torch.float64), sums)
    monkeypatch.setattr(lora_ablation, "costs", lambda *_: known)
    found = list(ablation(by=[], random=0)._on_text(None, None, [None] * 3))
    findings = {f.name.removeprefix("lora_ablation/whole/base/"): f for f in found if isinstance(f, Finding)}
    assert findings["excess"].value == pytest.approx(0.1) and (findings["excess"].low > 0) == told
    assert ("share" in findings) == told != any(isinstance(item, Note) for item in found)


def test_what_is_never_below_zero_has_no_end_below_it_and_what_is_gained_may_have_one():
    def each(kl, ce):
        """Of two documents of 100 tokens, without one set of adapters."""
        sums = torch.tensor([kl, kl, ce], dtype=torch.float64).T[:, None]
        return _each(Costs(torch.tensor([100.0, 100.0], dtype=torch.float64), sums), 0)

    full, base, random = each([0, 0], [100, 200]), each([5, 5], [200, 301]), each([10, 10.01], [100, 100])
    of = _measured(each([0, 20], [1, 400]), full, base["ce"] - full["ce"], random)
    for name in ("kl_full_ablated", "kl_ablated_full", "ce", "over_random"):
        assert of[name][1] == 0 < of[name][0], name
    for name in ("excess", "share"):
        assert of[name][1] < 0 < of[name][0], name


def test_a_pair_without_adapters_is_refused_with_the_way_out(pair, folders, tmp_path):
    with pytest.raises(Refused, match="has no adapters to read; choose model_pair=toy_lora"):
        measured(pair)
    merged = pair_of(folders, save_adapter(tmp_path, folders["base"]), merged=True).load()
    with pytest.raises(Refused, match="merged: set merged=false"):
        measured(merged)
    with pytest.raises(Refused, match=r"lora_ablation.by names \['head'\]: choose of layer, module, type"):
        ablation(by=["head"])


def test_lora_on_other_weights_than_the_base_are_told(folders, tmp_path):
    tuned = ModelSource(str(folders["tuned"]), dtype="float32", adapter=str(save_adapter(tmp_path, folders["tuned"])))
    pair = ModelPair(ModelSource(str(folders["base"]), dtype="float32"), tuned).load()
    _, _, notes = measured(pair, ablation(by=[]))
    assert "the adapters lie on other weights than the pair's base" in notes[0]
