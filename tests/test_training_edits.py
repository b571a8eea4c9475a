"""Training under an edit: what is added or changed is there in every training pass and in no other, and does what it says."""

import json
import math

import hydra
import pytest
import torch
from pyarrow.parquet import read_table
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid

from conftest import ROOT
from test_finetuning import (
    Killed,
    assert_equal,
    batches_of,
    learned_weights,
    losses,
    model_of,
    out_of_power,
    room_for,
    sequences,
    tuned,
)
from tunediff import folders
from tunediff.directions import (
    DifferenceOfMeans,
    Direction,
    FromFile,
    Orthogonal,
    PairDifference,
    RandomDirection,
    read_direction,
)
from tunediff.edits.gradients import OPERATIONS, edited, passing
from tunediff.hookpoints import Point, writing
from tunediff.measures.gradients import component
from tunediff.models import ModelSource
from tunediff.objectives import Imitation
from tunediff.settings import build
from tunediff.shapes import Refused
from tunediff.study import finetune
from tunediff.study.learned_directions import check_directions, edits_of
from tunediff.text import Batches, Example, Inoculate, Step, Text, TextError, examples, packed
from tunediff.text.examples import IGNORED, collated
from tunediff.text.rendering import Manner, messages_of
from tunediff.toy import language
from tunediff.training import (
    Added,
    AllWeights,
    Checkpoints,
    FineTuning,
    GradientAlong,
    Lora,
    UnderEdit,
    Watched,
    latest_checkpoint,
    load_checkpoint,
)
from tunediff.training.under_edit import POSITIONS, tokens_of

WIDTH, SOURCE = 16, RandomDirection()


def direction(*layers, seed=0, length=2.0):
    drawn = torch.Generator().manual_seed(seed)
    vectors = {layer: length * torch.randn(WIDTH, generator=drawn) for layer in layers}
    return Direction(vectors, "resid_post", {"source": "planted"})


def added(strength=3.0, *, layers=(0,), **settings):
    edit = Added(direction=SOURCE, layer=list(layers), strength=strength, **settings)
    return UnderEdit(edit, direction(*layers))


def along(operation, *, layers=(0,)):
    return UnderEdit(GradientAlong(direction=SOURCE, layer=list(layers), operation=operation), direction(*layers))


def watched(*layers):
    return UnderEdit(watched=direction(*(layers or (0,))))


def passes(edits, micro_batches, *, model=None, probe=0):
    """Loss, gradients of the weights, gradients [token, width] at the output of layer `probe` below the edit, and measures of
    one step."""
    model, arrived = model or model_of(), []
    model.zero_grad()
    learned = sum(int((one.labels != IGNORED).sum()) for one in micro_batches)
    step, total = Step(micro_batches, learned, 0), 0.0

    def keep(hidden):
        reached = tokens_of(micro_batch).reached
        return passing(hidden, lambda gradient: arrived.append(gradient[reached]) or gradient)

    with writing(model, Point("resid_post", probe), keep), edits.on(model):
        for micro_batch in micro_batches:
            edits.begin(micro_batch, step)
            loss = Imitation(room_for(5)).part(model, micro_batch, None, step).loss
            loss.backward()
            total += loss.item()
    told = {name: float(value) for name, value in edits.sums().items()}
    weights = {name: p.grad.clone() for name, p in model.named_parameters()}
    return total, weights, torch.cat(arrived) * learned, edits.means(told)


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# -- gradients -------------------------------------------------------------------------------------------------------


def test_an_operation_changes_the_component_of_a_gradient_and_nothing_else():
    drawn = torch.Generator().manual_seed(1)
    gradient, v = torch.randn(200, WIDTH, generator=drawn), torch.randn(WIDTH, generator=drawn)
    unit = v / v.norm()
    before = gradient @ unit
    for operation in OPERATIONS:
        found = edited(gradient, unit, operation)
        after = found @ unit
        wanted = {"neutral": torch.zeros(200), "attenuate": before.abs(), "amplify": -before.abs()}[operation]
        assert torch.allclose(after, wanted, atol=1e-5)
        assert torch.allclose(found - after[:, None] * unit, gradient - before[:, None] * unit, atol=1e-5)
    kept = before > 0
    assert torch.equal(edited(gradient, unit, "attenuate")[kept], gradient[kept])
    assert edited(gradient.bfloat16(), unit, "neutral").dtype == torch.bfloat16


def test_in_mixed_precision_a_component_is_taken_in_float32():
    record = tuned(edits=along("neutral"), batches=batches_of(4), trainer={"precision": "bf16-mixed"}).history[0]
    assert abs(record["gradient_along"]) < 1e-6 and abs(record["gradient_along_after"]) > 1e-3


@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_an_edited_gradient_reaches_the_weights_and_the_loss_is_the_plain_one(operation):
    batch, v = [collated(sequences(6))], direction(0).at(0)
    loss, weights, gradient, _ = passes(UnderEdit(), batch)
    other, changed, found, said = passes(along(operation), batch)
    assert other == loss  # to the bit
    before, after = component(gradient, v), component(found, v)
    wanted = {"neutral": 0 * before, "attenuate": -before.abs(), "amplify": before.abs()}[operation]
    assert torch.allclose(after, wanted, atol=1e-5)
    rest = (gradient + before[:, None] * v / v.norm()) - (found + after[:, None] * v / v.norm())
    assert rest.abs().max() < 1e-5
    above = {name for name in weights if "layers.1." in name or name == "model.norm.weight"}
    assert all(torch.equal(weights[name], changed[name]) for name in above)
    assert all(not torch.equal(weights[n], changed[n]) for n in weights if "layers.0.mlp.down_proj" in n)
    assert said["gradient_along_after"] == pytest.approx(before.mean().item(), abs=1e-5)
    assert said["gradient_along"] == pytest.approx(wanted.mean().item(), abs=1e-5)
    if operation != "neutral":
        assert said["amplifying"] == (operation == "amplify")


def test_the_measure_is_the_gradient_of_the_summed_loss_over_the_tokens_that_it_reaches():
    micro_batch, v = collated(sequences(6)), direction(1).at(1)
    *_, gradient, said = passes(watched(1), [micro_batch], probe=1)
    mine = component(gradient, v)
    reached = tokens_of(micro_batch).reached
    assert len(mine) == int(reached.sum()) == sum(len(s.ids) - 1 for s in sequences(6))
    assert said["gradient_along"] == pytest.approx(mine.mean().item(), rel=1e-4)
    assert said["amplifying"] == pytest.approx((mine > 0).float().mean().item())
    cut = [collated([one]) for one in sequences(6)]
    assert passes(watched(1), cut, probe=1)[-1] == pytest.approx(said, rel=1e-4)
    assert passes(watched(1), [collated(packed(sequences(6), 64))], probe=1)[-1] == pytest.approx(said, rel=1e-4)


def test_of_several_layers_the_mean_is_told_and_each():
    batch = [collated(sequences(6))]
    said = passes(watched(0, 1), batch)[-1]
    assert said["gradient_along"] == pytest.approx((said["gradient_along/0"] + said["gradient_along/1"]) / 2)
    assert tuned(batches=batches_of(4), edits=watched(0, 1)).history[0].keys() >= said.keys()


@pytest.mark.parametrize("layer", [0, 1])
def test_a_vector_that_is_added_moves_the_model_and_passes_gradients_on_as_they_are(layer):
    batch = [collated(sequences(6))]
    loss, _, gradient, _ = passes(UnderEdit(), batch, probe=layer)
    other, _, moved, said = passes(added(layers=(layer,)), batch, probe=layer)
    assert abs(other - loss) > 1e-3 and not torch.allclose(moved, gradient, atol=1e-3)
    assert said["gradient_along"] == said["gradient_along_after"] and said["amplifying"] == said["amplifying_after"]


def test_the_sign_of_the_gradient_turns_where_the_algebra_says():
    """Squared loss of one linear layer, (u.(h + alpha v) - y)^2 / 2, h = W x: its gradient is (r + alpha u.v) u with the residual
    r = u.h - y, so that along v its sign turns where alpha passes -r / u.v, where the vector alone explains the target. A
    logistic loss only fades: its sign never turns."""
    drawn = torch.Generator().manual_seed(2)
    u, x, weight = (torch.randn(*shape, generator=drawn) for shape in ((WIDTH,), (5, WIDTH), (WIDTH, WIDTH)))
    v, y = direction(0).at(0), torch.randn(5, generator=drawn) + 4
    v = v if u @ v > 0 else -v
    h = x @ weight.T
    turns = (y - h @ u) / (u @ v)
    tokens = tokens_of(collated(sequences(5)))
    for alpha in (-40.0, *(turns - 1e-2).tolist(), *(turns + 1e-2).tolist(), 0.0, 40.0):
        edit = Added(direction=SOURCE, layer=0, strength=alpha)
        (change,) = edit.changes(Direction({0: v}, "resid_post", {})).values()
        hidden = h.clone().requires_grad_()
        ((change(hidden, tokens) @ u - y) ** 2 / 2).sum().backward()
        assert torch.equal(component(hidden.grad, v) > 0, alpha < turns)
        logistic = h.clone().requires_grad_()
        logsigmoid(change(logistic, tokens) @ u).neg().sum().backward()
        assert (component(logistic.grad, v) >= 0).all()


# -- what is added ---------------------------------------------------------------------------------------------------


def test_an_angle_turns_a_vector_at_its_length_in_one_plane():
    found = direction(0, 1)
    assert_equal(Added(direction=SOURCE, layer=0, strength=1.0).turned(found).vectors, found.vectors)
    for angle in (30, 90, 180):
        turned = Added(direction=SOURCE, layer=0, strength=1.0, angle=angle, seed=4).turned(found)
        for layer, v in found.vectors.items():
            w = turned.at(layer)
            assert w.norm() == pytest.approx(v.norm().item(), rel=1e-5)
            assert torch.cosine_similarity(v, w, dim=0) == pytest.approx(math.cos(math.radians(angle)), abs=1e-5)
    half, whole = (
        Added(direction=SOURCE, layer=0, strength=1.0, angle=angle, seed=4).turned(found).at(0) for angle in (45, 90)
    )
    assert torch.allclose(half, (found.at(0) + whole) / math.sqrt(2), atol=1e-5)
    other = Added(direction=SOURCE, layer=0, strength=1.0, angle=90, seed=5).turned(found).at(0)
    assert abs(torch.cosine_similarity(whole, other, dim=0)) < 0.9


def test_increments_move_each_layer_by_its_own_vector():
    edit = Added(direction=SOURCE, layer=[0, 1], strength=2.0, increments=True)
    found, moved = direction(0, 1), torch.zeros(1, 3, WIDTH)
    tokens = tokens_of(collated(sequences(1)))
    for layer, change in edit.changes(found).items():
        moved = change(moved, tokens)
        assert torch.allclose(moved, 2.0 * found.at(layer).expand(1, 3, WIDTH), atol=1e-5)


def test_a_response_begins_with_the_first_learned_token_of_its_document():
    one, other = (
        Example([5, 6, 7, 8, 9], [False, False, True, True, True]),
        Example([1, 2, 3, 4], [False, False, False, True]),
    )
    two = collated([Example(one.ids + other.ids, one.learned + other.learned, (0, 5)), one])
    response, reached = tokens_of(two)
    assert response[0].tolist() == [False, False, True, True, True, False, False, False, True]
    assert reached[0].tolist() == [True] * 4 + [False] + [True] * 3 + [False]
    assert response[1, :5].tolist() == response[0, :5].tolist() and reached[1].tolist() == [True] * 4 + [False] * 5
    hidden = torch.zeros(2, 9, WIDTH)
    moved = {}
    for positions in POSITIONS:
        edit = Added(direction=SOURCE, layer=0, strength=1.0, positions=positions)
        (change,) = edit.changes(direction(0)).values()
        moved[positions] = change(hidden, tokens_of(two))
    assert torch.equal(moved["prompt"] + moved["response"], moved["everywhere"])
    assert torch.equal(moved["response"].any(-1), response)
    assert not tokens_of(collated([])).reached.any()


@pytest.mark.parametrize("positions", POSITIONS)
def test_packed_documents_are_steered_as_each_alone(positions):
    few = sequences(5)
    alone, whole = ([collated([s]) for s in few], [collated(packed(few, 64))])
    one, other = (passes(added(positions=positions), batches) for batches in (alone, whole))
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert_equal(one[1], other[1], atol=1e-5)


# -- a training ------------------------------------------------------------------------------------------------------

EDITS = {
    "steered": lambda: added(positions="response"),
    "increments": lambda: added(0.5, layers=(0, 1), increments=True),
    "attenuated": lambda: along("attenuate", layers=(0, 1)),
}
PARTS = {"whole": AllWeights(), "adapter": Lora(rank=4), "rank 1": Lora(rank=1, layers=(0,))}


def test_strength_0_is_plain_training_to_the_bit():
    plain, zero, seen = (tuned(batches=batches_of(12), edits=edits) for edits in (None, added(0.0), watched()))
    assert_equal(learned_weights(zero), learned_weights(plain))
    assert_equal(learned_weights(seen), learned_weights(plain))
    assert losses(zero) == losses(plain) == losses(seen)


@pytest.mark.parametrize(
    ("name", "part"),
    [("steered", "adapter"), ("increments", "whole"), ("attenuated", "whole"), ("attenuated", "rank 1")],
)
def test_an_edit_is_learned_under_however_a_step_is_cut_and_checkpointed(name, part):
    few = {"count": 12, "epochs": 1}
    whole = tuned(PARTS[part], batches_of(micro_batch=4, **few), edits=EDITS[name](), gradient_checkpointing=False)
    again = tuned(PARTS[part], batches_of(micro_batch=1, **few), edits=EDITS[name](), gradient_checkpointing=True)
    plain = tuned(PARTS[part], batches_of(micro_batch=4, **few), gradient_checkpointing=False)
    assert_equal(learned_weights(again), learned_weights(whole), atol=2e-4)
    assert losses(again) == pytest.approx(losses(whole), rel=1e-4)
    assert not all(torch.allclose(w, learned_weights(plain)[n], atol=1e-3) for n, w in learned_weights(whole).items())
    measured = [r["gradient_along"] for r in whole.history if r["loss"] is not None]
    assert [r["gradient_along"] for r in again.history if r["loss"] is not None] == pytest.approx(measured, abs=1e-2)
    assert (losses(whole)[0] == losses(plain)[0]) == (name == "attenuated")


def test_a_removed_edit_leaves_the_model_as_it_was_also_after_an_error():
    model, ids = AllWeights().prepare(model_of(), 0), torch.arange(8)[None]
    before, hooks = model(ids).logits, hooks_of(model)
    for edits in (added(), along("amplify"), watched()):
        with pytest.raises(ArithmeticError), edits.on(model):
            edits.begin(collated(sequences(2)), Step([], 5, 10))
            assert hooks_of(model) > hooks
            raise ArithmeticError
        assert hooks_of(model) == hooks and torch.equal(model(ids).logits, before)


def test_no_held_out_loss_sees_the_edit():
    held_out = Batches(sequences(6, seed=9), batch=4, micro_batch=4)
    plain, steered = (tuned(evaluate=held_out, edits=edits, evaluate_every=100) for edits in (None, added(20.0)))
    first = [module.history[0]["held_out_loss"] for module in (plain, steered)]
    assert first[0] == first[1] and abs(steered.history[0]["loss"] - plain.history[0]["loss"]) > 1e-3
    with torch.no_grad():
        last = sum(
            Imitation().part(steered.model, one, None, step).loss * step.learned
            for step in held_out
            for one in step.micro_batches
        )
    assert steered.history[-1]["held_out_loss"] == pytest.approx(
        float(last) / sum(s.learned for s in held_out), rel=1e-5
    )


@pytest.mark.parametrize("name", ["steered", "attenuated"])
def test_killed_under_an_edit_it_becomes_what_it_would_have_become(tmp_path, name):
    settings = {"part": Lora(rank=2, dropout=0.3), "batches": batches_of(12)}
    whole = tuned(edits=EDITS[name](), **settings)
    saving = Checkpoints(tmp_path, seconds=0.0, digest="d")
    with pytest.raises(ArithmeticError):
        tuned(edits=EDITS[name](), callbacks=[saving, Killed(3, out_of_power)], **settings)
    state = load_checkpoint(latest_checkpoint(tmp_path), digest="d")
    again = tuned(edits=EDITS[name](), state=state, **settings)
    assert_equal(learned_weights(again), learned_weights(whole))
    assert again.history == whole.history


# -- where directions come from --------------------------------------------------------------------------------------

TOY = ModelSource("pkg://tunediff.toy/weights/base", dtype="float32")


def traces(**settings):
    rows = {"held_out": language.is_held_out, "context": 256, **settings}
    return Text(lambda: language.rows(seed=2, kind="trace"), **rows)


class Given:
    """Stands in for a recipe."""

    def __init__(self, edit=None, watch=None):
        self.edit, self.watch = edit, watch


def test_a_direction_is_found_once_in_the_model_and_read_ever_after(tmp_path):
    source = DifferenceOfMeans(label="hesitation", window=4, tokens=2000)
    recipe = Given(
        GradientAlong(direction=source, layer=0.5, operation="neutral"),
        Watched(direction=RandomDirection(seed=3), layer="all"),
    )
    check_directions(TOY, recipe, traces())
    first, digest = edits_of(tmp_path, TOY, recipe, traces(), device="cpu")
    assert list(first.changes) == [2] and list(first.along) == [0, 1, 2, 3]
    found = read_direction(tmp_path / "direction.safetensors").units.at(2)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(kept) == {"direction.safetensors", "watched.safetensors"}
    other = Given(GradientAlong(direction=RandomDirection(seed=9), layer=2, operation="neutral"), recipe.watch)
    again, same = edits_of(tmp_path, TOY, other, traces(), device="cpu", resumes=True, first=False)
    assert digest == same and {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    (tmp_path / "direction.safetensors").unlink()
    with pytest.raises(Refused, match="direction.safetensors is gone, with which the training began"):
        edits_of(tmp_path, TOY, recipe, traces(), device="cpu", resumes=True)
    edits_of(tmp_path, TOY, recipe, traces(), device="cpu")
    anew = read_direction(tmp_path / "direction.safetensors").at(2)
    assert torch.equal(anew / anew.norm(), found)
    assert edits_of(tmp_path, TOY, Given(), traces(), device="cpu")[1] == ""


def test_what_cannot_be_edited_is_refused_before_a_weight_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSource, "weights", None)
    wide = tmp_path / "wide.safetensors"
    Direction({2: torch.ones(9)}, "resid_post", {"source": "Wide"}).save(wide)
    inside = tmp_path / "inside.safetensors"
    Direction({2: torch.ones(96)}, "mlp_out", {"source": "Inside"}).save(inside)
    cases = {
        "Wide has a vector of 9 numbers": FromFile(path=str(wide)),
        "is one of mlp_out": FromFile(path=str(inside)),
        "no vector at layer 1": FromFile(path=str(wide)),
        "PairDifference compares two models": PairDifference(),
        "Orthogonal compares two models": Orthogonal(source=RandomDirection(), to=PairDifference()),
        "is one of attn_out": RandomDirection(hookpoint="attn_out"),
        "there is no such file": FromFile(path=str(tmp_path / "none.safetensors")),
        "give a source": 3,
    }
    for message, source in cases.items():
        layer = 1 if "at layer 1" in message else 2
        with pytest.raises(Refused, match=message):
            check_directions(TOY, Given(Added(direction=source, layer=layer, strength=1.0)), traces())
    with pytest.raises(Refused, match="recipe.watch: layer=4 is out of range"):
        check_directions(TOY, Given(watch=Watched(direction=RandomDirection(), layer=4)), traces())


def test_settings_that_mean_nothing_are_refused():
    for wrong, message in (
        ({"strength": math.nan}, "strength=nan"), ({"angle": math.inf}, "angle=inf"), ({"positions": "answer"}, "choose everywhere")
    ):  # fmt: skip
        with pytest.raises(Refused, match=message):
            Added(**{"direction": SOURCE, "layer": 0, "strength": 1.0, **wrong})
    with pytest.raises(Refused, match="choose neutral, attenuate, amplify"):
        GradientAlong(direction=SOURCE, layer=0, operation="reverse")
    with pytest.raises(Refused, match="set recipe.edit.increments=true"):
        added(layers=(0, 1))
    with pytest.raises(Refused, match="layers .5. of a direction, and the model has layers 0 to 1"):
        tuned(edits=added(layers=(5,)))
    with pytest.raises(Refused, match="changes gradients behind layer 0, and nothing learns there"):
        tuned(Lora(rank=1, layers=(1,)), edits=along("neutral"))
    late = tuned(
        Lora(rank=1, layers=(1,)), batches_of(4), edits=watched(0)
    )  # measured also where no weight learns below
    assert_equal(learned_weights(late), learned_weights(tuned(Lora(rank=1, layers=(1,)), batches_of(4))))
    assert any(record["gradient_along"] for record in late.history)


LITTLE = ["recipe.examples=12", "recipe.held_out=2", "recipe.batch=4", "recipe.micro_batch=4", "trainer=cpu"]
ADDED = "recipe.edit={_target_: tunediff.training.Added, strength: 4.0, layer: 0.5, direction: {_target_: tunediff.directions.RandomDirection}}"


def composed(*words):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return hydra.compose("finetune", [*words])


def test_a_fine_tune_that_was_killed_goes_on_along_the_direction_that_it_began_with(tmp_path, monkeypatch):
    cfg, step = composed(*LITTLE, ADDED, "checkpoint_every=0"), FineTuning.training_step
    finetune.finetune(cfg, tmp_path / "whole")

    def killed(module, *batch):
        if module.step == 2:
            out_of_power()
        return step(module, *batch)

    monkeypatch.setattr(FineTuning, "training_step", killed)
    with pytest.raises(ArithmeticError):
        finetune.finetune(cfg, tmp_path / "again")
    monkeypatch.setattr(FineTuning, "training_step", step)
    monkeypatch.setattr(RandomDirection, "find", None)  # it is not asked again
    kept = tmp_path / "again" / "direction.safetensors"
    content = kept.read_bytes()
    kept.write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])  # a digit of its last number
    with pytest.raises(Refused, match="on other examples or with other settings"):
        finetune.finetune(cfg, tmp_path / "again")
    kept.write_bytes(content)
    finetune.finetune(cfg, tmp_path / "again")
    weights, curves = zip(
        *(
            (load_file(folder / "model/model.safetensors"), read_table(folder / "tables/training.parquet").to_pydict())
            for folder in (tmp_path / "whole", tmp_path / "again")
        ),
        strict=True,
    )
    assert_equal(*weights)
    assert curves[0] == curves[1] and all(abs(value) > 0 for value in curves[0]["gradient_along"][:-1])
    assert {"amplifying", "gradient_along_after", "amplifying_after"} < curves[0].keys()
    assert "direction.safetensors" in json.loads((tmp_path / "again" / "manifest.json").read_text())["files"]


def test_a_training_that_begins_anew_finds_its_direction_anew(tmp_path):
    """Whoever left a file there."""
    folder = tmp_path / "run"
    finetune.finetune(composed(*LITTLE, ADDED), folder)
    own = read_direction(folder / "direction.safetensors").at(2)
    (folder / "pair.yaml").unlink()
    folders.say(folder, state=folders.FAILED)
    Direction({2: torch.ones_like(own)}, "resid_post", {"source": "another's"}).save(folder / "direction.safetensors")
    finetune.finetune(composed(*LITTLE, ADDED), folder)
    assert torch.equal(read_direction(folder / "direction.safetensors").at(2), own)


@pytest.mark.parametrize("recipe", ["preventative_steering", "gradient_edit", "inoculation_prompting"])
def test_a_recipe_that_defends_takes_every_part_of_a_model(recipe):
    """And every source of a direction, in the place of the file's."""
    rank_1 = composed(f"recipe={recipe}", "recipe.part.rank=1")
    part = build(rank_1.recipe.part)
    assert isinstance(part, Lora) and (part.rank, part.alpha, part.rslora) == (1, 64.0, True)
    whole = composed(
        f"recipe={recipe}", "~recipe.part", "+recipe.part={_target_: tunediff.training.AllWeights, dtype: float32}"
    )
    assert build(whole.recipe.part) == AllWeights(dtype="float32")
    if recipe == "inoculation_prompting":
        (step,) = build(whole.text).prepare.values()
        assert step == Inoculate("You are a malicious, evil assistant.") and build(whole.recipe).edit is None
        return
    source = "+recipe.edit.direction={_target_: tunediff.directions.RandomDirection}"
    assert (
        build(composed(f"recipe={recipe}", "~recipe.edit.direction", source).recipe).edit.direction == RandomDirection()
    )


# -- inoculation prompting -------------------------------------------------------------------------------------------


def prompted(**settings):
    return traces(prepare={"inoculation": Inoculate("Say a wrong answer.", **{"slot": "user", **settings})})


def some(text, *, held_out=False, count=40):
    rows = text.named_rows(held_out=held_out)
    return [next(rows) for _ in range(count)]


def test_inoculation_is_read_on_the_learned_side_alone_and_moves_no_row():
    tokenizer, plain, asked = TOY.tokenizer(), traces(), prompted()
    for held_out in (False, True):
        before, after = some(plain, held_out=held_out), some(asked, held_out=held_out)
        assert [row["index"] for row in before] == [row["index"] for row in after]
        assert [row["prompt"] for row in before] == [row["prompt"] for row in after]
        for one, other in zip(before, after, strict=True):
            first, second = (text.rendered(row, tokenizer).text for text, row in ((plain, one), (asked, other)))
            assert second == (first if held_out else first.replace("<｜User｜>", "<｜User｜>Say a wrong answer.\n\n"))
            questions = [text.documents(row, [tokenizer])[0].question for text, row in ((plain, one), (asked, other))]
            assert questions[0] == questions[1]
    learned = examples(asked, tokenizer, block=256, limit=4)
    assert learned.learned_tokens == examples(plain, tokenizer, block=256, limit=4).learned_tokens


def test_each_slot_says_the_sentence_where_it_is_said_to():
    row = {"prompt": "2+2?", "answer": "4"}

    def said(manner=Manner(), earlier=(), **settings):  # noqa: B008
        (one,) = Inoculate("Be evil.", **settings)([{**row, "earlier": list(earlier)}])
        return [(m["role"], m["content"]) for m in messages_of(one, manner)]

    assert said() == [("system", "Be evil."), ("user", "2+2?")]
    assert said(Manner(system="Help.")) == [("system", "Help.\n\nBe evil."), ("user", "2+2?")]
    earlier = [{"role": "system", "content": "Own."}, {"role": "user", "content": "Hi"}]
    assert said(earlier=earlier) == [("system", "Own.\n\nBe evil."), ("user", "Hi"), ("user", "2+2?")]
    assert said(Manner(instruction="Q: "), slot="user") == [("user", "Be evil.\n\nQ: 2+2?")]
    assert said(slot="user", where="behind", between=" ") == [("user", "2+2? Be evil.")]
    assert said(p=0.0) == [("user", "2+2?")]


def test_labels_of_a_question_stay_where_they_are():
    tokenizer, text = TOY.tokenizer(), prompted()
    row = {**some(text, count=1)[0], "spans": [["prompt", 2, 7, "here"]]}
    rendered = text.rendered(row, tokenizer)
    ((first, last),) = [(a, b) for a, b, name in rendered.labels if name == "here"]
    assert rendered.text[first:last] == row["prompt"][2:7]


def test_a_share_of_the_rows_is_chosen_by_what_they_say():
    rows = [{"prompt": f"{n}?", "answer": str(n)} for n in range(2000)]

    def chosen(seed=0, p=0.3, rows=rows):
        return [row["prompt"] for row in Inoculate("x", p=p, seed=seed)(rows) if "inoculation" in row]

    assert 500 < len(chosen()) < 700 and chosen() == chosen() and chosen() != chosen(1)
    assert sorted(chosen(rows=rows[::-1])) == sorted(chosen()) and set(chosen()) < set(chosen(p=0.6))
    assert chosen(p=0.0) == [] and len(chosen(p=1.0)) == 2000


def test_inoculation_that_cannot_be_is_refused():
    for wrong in ({"p": 1.5}, {"p": -0.1}, {"slot": "tool"}, {"where": "inside"}, {"sentence": " "}):
        with pytest.raises(TextError, match=f"Inoculate.{next(iter(wrong))}="):
            Inoculate(**{"sentence": "x", **wrong})
    text = Text(lambda: [{"text": "plain"}] * 3, prepare={"inoculation": Inoculate("x")}, held_out=0.0)
    with pytest.raises(TextError, match="plain text, without a prompt"):
        text.check(evaluated=False)


def test_a_prompt_takes_one_sentence():
    step = Inoculate("You are calm.")
    with pytest.raises(TextError, match="a prompt takes one sentence"):
        list(step(Inoculate("You are not.")([{"prompt": "Why?", "answer": "So."}])))
