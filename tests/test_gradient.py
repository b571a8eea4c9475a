"""Gradients of hidden vectors along a direction, against finite differences and planted spreads."""

import copy
import itertools

import pytest
import torch

from tunediff.directions import RandomDirection
from tunediff.evaluations import Given, Gradient
from tunediff.hookpoints import Point, writing
from tunediff.measures.gradients import component, spread
from tunediff.models import ModelPair, ModelSource
from tunediff.objectives import Imitation
from tunediff.shapes import Figure, Finding, Refused, Table
from tunediff.text import Text, examples
from tunediff.text.examples import collated
from tunediff.toy import language


@pytest.fixture(scope="module")
def given(folders):
    source = ModelSource(str(folders["base"]), dtype="float32")
    text = Text(lambda: itertools.islice(language.rows(0, "trace"), 40), held_out=0.1, context=256)
    return Given(ModelPair(source, source).load(), text, 1000)


def asked(given, **settings):
    settings = {
        "direction": RandomDirection(seed=1),
        "layer": 1,
        "examples": 8,
        "draws": 2,
        "strengths": [2.0],
        **settings,
    }
    found = list(Gradient(**settings).run(given))
    for figure in (one for one in found if isinstance(one, Figure)):
        figure.check()
    tables = {one.name: one.columns for one in found if isinstance(one, Table)}
    return tables, {one.name: one for one in found if isinstance(one, Finding)}


def of(tables, condition, layer):
    rows = tables["gradient"]
    n = list(zip(rows["condition"], rows["layer"], strict=True)).index((condition, layer))
    return {name: values[n] for name, values in rows.items()}


def test_a_component_says_which_way_descent_goes():
    gradients = torch.tensor([[2.0, 0.0], [-3.0, 5.0], [0.0, 1.0]])
    assert component(gradients, torch.tensor([10.0, 0.0])).tolist() == [-2.0, 3.0, 0.0]


def test_gradients_along_one_direction_use_one_and_those_of_all_directions_all():
    line = torch.randn(50, 1, dtype=torch.float64) * torch.randn(6, dtype=torch.float64)
    assert spread(line.T @ line) == pytest.approx((1.0, 1.0))
    assert spread(torch.eye(6)) == pytest.approx((6.0, 1 / 6))
    assert spread(torch.zeros(3, 3)) == (None, None)


def test_what_is_measured_along_a_direction_is_the_slope_of_the_loss(given):
    """-sum of components = d loss / d alpha for alpha v added at the layer, where every token counts."""
    tables, _ = asked(given, layers=[1])
    direction = RandomDirection(seed=1).find(given, "base", [1]).at(1).double()
    model = copy.deepcopy(given.pair.models["base"]).double()
    objective, learned = Imitation(), examples(given.text, given.pair.tokenizers[0], block=1024, limit=8)

    objective.check(model)  # which tries two tokens, outside of edits

    def loss(alpha):
        total = 0.0
        with torch.no_grad():
            for example in learned:
                batch = collated([example])
                predicts = (batch.labels != -100)[..., None]
                with writing(model, Point("resid_post", 1), lambda h, here=predicts: h + alpha * here * direction):
                    total += float(objective.loss_sum(model, batch)[0])
        return total

    tokens = sum(sum(one.learned) for one in learned)
    slope = (loss(1e-3) - loss(-1e-3)) / 2e-3
    plain = of(tables, "plain", 1)
    assert plain["along"] * tokens == pytest.approx(-slope, rel=1e-3)
    assert plain["loss"] == pytest.approx(loss(0.0) / tokens, rel=1e-5)


def test_the_loss_under_a_vector_is_that_of_the_model_with_it_and_the_pair_is_left_as_it_was(given):
    model = given.pair.models["base"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tables, findings = asked(given)
    vector = 2.0 * RandomDirection(seed=1).find(given, "base", [1]).at(1)
    learned = examples(given.text, given.pair.tokenizers[0], block=1024, limit=8)
    with torch.no_grad(), writing(model, Point("resid_post", 1), lambda h: h + vector):
        nats = [float(Imitation().loss_sum(model, collated([one]))[0]) for one in learned]
    expected = sum(nats) / sum(sum(one.learned) for one in learned)
    assert of(tables, "added/2", 0)["loss"] == pytest.approx(expected, rel=1e-5)
    assert findings["gradient/added/2/loss_change"].value == pytest.approx(
        expected - of(tables, "plain", 0)["loss"], rel=1e-3
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_prompt_that_says_nothing_changes_nothing_and_one_that_says_something_the_loss(given):
    def instruct(rows):
        return ({**row, "prompt": f"Wait. {row['prompt']}"} for row in rows)

    tables, _ = asked(given, prompts={"same": iter, "other": instruct}, draws=0, strengths=[])
    same, other, plain = (of(tables, name, 2) for name in ("same", "other", "plain"))
    assert {**same, "condition": "plain"} == plain and other["loss"] != plain["loss"]
    cosines = tables["gradient_cosines"]
    assert ("plain", "direction") in zip(cosines["one"], cosines["other"], strict=True)


def test_another_seed_has_other_vectors_and_the_same_seed_the_same(given):
    random = [of(asked(given, seed=seed)[0], "random/2", 1)["along"] for seed in (0, 0, 1)]
    assert random[0] == random[1] != random[2]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"unit": "norm"}, "own or residual_norm"),
        ({"strengths": [0.0]}, "above 0"),
        ({"examples": 1}, "at least 2 examples"),
        ({"prompts": {"plain": iter}}, "choose other names"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(Refused, match=said):
        Gradient(**{"direction": RandomDirection(), "layer": 0, **settings})


def test_a_layer_that_is_not_there_is_refused_before_a_weight_is_read(given):
    with pytest.raises(Refused, match="layer 9 is none of the base model's, 0 to 2"):
        Gradient(direction=RandomDirection(), layer=9).check(given.pair, given.text)
