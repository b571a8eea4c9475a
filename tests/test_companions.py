"""What is trained beside a dictionary: a twin, and controls whose truth is known. The dictionary does not notice them."""

import json
from functools import partial

import pytest
import safetensors.torch
import torch

import tunediff
from test_study import SMALL, TWO_STEPS, call, findings
from tunediff.activations import CONTROLS, Planted, PlantedRows, control_view, planted_events
from tunediff.dictionary import Crosscoder, Linear, Normalisation
from tunediff.evaluations import Geometry
from tunediff.evaluations.latents.scaling import Called
from tunediff.evaluations.reading.planted_truth import planted_recall
from tunediff.randomness import generator
from tunediff.shapes import BASE, TUNED, Refused, Rows, Stream
from tunediff.study import run as study_run

WIDTH = 6
STREAMS = [Stream(role, "resid_post", layer, WIDTH) for layer in (1, 2) for role in (BASE, TUNED)]


def seen_as(kind, rows, seed=0):
    return control_view(kind, STREAMS)(rows, generator(seed, "a test"))


@pytest.fixture
def rows():
    drawn = generator(0, "rows of a test")
    return Rows(torch.randn(50, 4 * WIDTH, generator=drawn), torch.rand(50, 4, 2, generator=drawn))


def pieces(values):
    """Columns of the base and of the tuned model, the layers side by side."""
    base_1, tuned_1, base_2, tuned_2 = values.split(WIDTH, dim=-1)
    return torch.cat([base_1, base_2], dim=-1), torch.cat([tuned_1, tuned_2], dim=-1)


def test_every_control_leaves_the_base_as_it_is_and_the_rows_that_it_was_given(rows):
    before = Rows(*(part.clone() for part in rows))
    for kind in CONTROLS:
        found = seen_as(kind, rows)
        assert torch.equal(pieces(found.values)[0], pieces(rows.values)[0]), kind
        assert torch.equal(found.moments[:, [0, 2]], rows.moments[:, [0, 2]]), kind
        assert torch.equal(rows.values, before.values) and torch.equal(rows.moments, before.moments), kind
        assert torch.equal(found.values, seen_as(kind, rows).values), kind


def test_equal_models_are_the_base_twice(rows):
    found = seen_as("equal", rows)
    assert torch.equal(*pieces(found.values)) and torch.equal(found.moments[:, [0, 2]], found.moments[:, [1, 3]])


def test_noise_has_the_norm_of_the_difference_at_each_token_and_no_direction_of_it(rows):
    base, tuned = (part[:, :WIDTH] for part in pieces(rows.values))
    noise = pieces(seen_as("noise", rows).values)[1][:, :WIDTH] - base
    assert torch.allclose(noise.norm(dim=-1), (tuned - base).norm(dim=-1), rtol=1e-4)
    assert abs(float(torch.cosine_similarity(noise, tuned - base, dim=-1).mean())) < 0.25
    assert not torch.equal(noise, pieces(seen_as("noise", rows, seed=1).values)[1][:, :WIDTH] - base)


def test_permuted_rows_are_the_tuned_models_at_other_tokens_whole(rows):
    """All layers of a token move together, with its moments."""
    tuned, found = pieces(rows.values)[1], seen_as("permuted", rows)
    order = [int((tuned == row).all(-1).nonzero()) for row in pieces(found.values)[1]]
    assert sorted(order) == list(range(50)) and sum(n == place for place, n in enumerate(order)) < 8
    assert torch.equal(found.moments[:, [1, 3]], rows.moments[order][:, [1, 3]])


def test_planted_directions_stand_in_the_copy_alone_with_their_strength_and_rate():
    streams = [Stream(role, "resid_post", 1, 64) for role in (BASE, TUNED)]
    base = torch.randn(40_000, 64, generator=generator(1, "rows of a test"))
    view = control_view("planted", streams)
    found = view(Rows(torch.cat([base, base.flip(0)], dim=-1), None), generator(0, "a test")).values
    assert torch.equal(found[:, :64], base)
    events = planted_events((64,))
    written = (found[:, 64:] - base) / base.norm(dim=-1).median()
    shares = written @ torch.linalg.pinv(events.directions[0])  # 48 directions of 64 can be told apart
    fires = shares > 0.03
    assert torch.allclose(fires.double().mean(0), events.rates, atol=0.003)
    mean = (shares * fires).sum(0) / fires.sum(0)
    assert torch.allclose(mean.double(), events.strengths, rtol=0.2)
    assert len(events.rates) == 48 and planted_events((64,)).directions[0] is events.directions[0]


def test_a_planted_direction_is_named_by_a_confirmed_latent_that_lies_near_it():
    streams = [Stream(role, "resid_post", 1, 64) for role in (BASE, TUNED)]
    events = planted_events((64,))
    made = Crosscoder(streams, latents=60, sparsity=Linear(0.0), normalisation=partial(Normalisation, kind="none"))
    with torch.no_grad():
        made.W_dec[:48, 64:] = events.directions[0]
    called = Called(made, TUNED, torch.tensor([0, 1, 1, 47, 50]))
    called.holds = torch.tensor([True, False, True, True, True])
    called.alive = torch.tensor([True, True, True, True, True])
    power, precision, by_norm, table, note = planted_recall(called)
    assert (precision.value, by_norm.value) == (3 / 4, 4 / 5), "latent 50 writes what nobody planted"
    assert power.value == 3 / 48 and power.low < 3 / 48 < power.high
    assert sum(table.columns["named"]) == 3 and sum(table.columns["directions"]) == 48
    assert "2 of 16 at 0.125 of the base's median norm, 0 of 16 at 0.25 of" in note.text


def test_one_model_has_no_controls_and_a_word_that_is_none_is_refused():
    with pytest.raises(Refused, match="There is no control of"):
        control_view("equal", STREAMS[:1])
    with pytest.raises(Refused, match="'shuffled' is no control: choose equal, noise, permuted, planted"):
        control_view("shuffled", STREAMS)


# -- the interval of a call ---------------------------------------------------------------------------------------------


def called_on(planted, blocks, documents):
    """The truth as a dictionary, in which every event is called the tuned model's own, and what latent scaling says."""
    written = planted.written(planted.streams)
    kind = partial(Normalisation, kind="none", sink_multiple=None)
    made = Crosscoder(planted.streams, latents=len(written), sparsity=Linear(0.0), normalisation=kind)
    with torch.no_grad():
        made.W_dec.copy_(written)
        made.W_enc.copy_(torch.linalg.pinv(written))
        made.b_dec.copy_(planted.center.flatten())
        made.b_enc.copy_(-planted.center.flatten() @ made.W_enc)
        called = Called(made, TUNED, torch.arange(len(written)))
        for block, here in zip(blocks, documents, strict=True):
            called.add(block, made.encode(block), here)
    called.decide(0.2, 0.5)
    return called


def test_a_call_is_confirmed_where_its_interval_over_documents_says_so():
    planted = Planted(width=32, counts={"shared": 6, "tuned_only": 6}, noise=0.01, seed=1)
    source = PlantedRows(planted, planted.streams, seed=1)
    blocks = [next(source) for _ in range(4)]
    many = [torch.arange(4096) // 64 + 64 * n for n in range(4)]
    found = called_on(planted, blocks, many)
    assert found.holds.tolist() == [kind == "tuned_only" for kind in planted.kinds] and found.count == 12
    whole = called_on(planted, blocks, [torch.zeros(4096, dtype=torch.long)] * 4)
    assert whole.confirmed == 0, "one document has no interval"
    parted = called_on(
        planted,
        [blocks[0]._replace(values=part) for part in blocks[0].values.split(2048)],
        [many[0][:2048], many[0][2048:]],
    )
    alone = called_on(planted, blocks[:1], many[:1])
    assert torch.allclose(parted.highest["nu_error"], alone.highest["nu_error"], atol=1e-5)
    assert (alone.highest["nu_error"] >= found.highest["nu_error"] - 0.05).all(), "more documents, no wider"


# -- a study -------------------------------------------------------------------------------------------------------------

SIX = ["evaluation=[geometry,latent_scaling,twin]", "dictionary.decoder_norm=0.1"]


@pytest.fixture(scope="module")
def accompanied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("companions") / "run"
    call("train.py", *SMALL, *SIX, "budget.companions=[twin,equal,noise,permuted,planted]", f"hydra.run.dir={folder}")
    return folder


def weights(folder):
    return safetensors.torch.load_file(folder / "weights.safetensors")


def test_companions_change_no_bit_of_the_dictionary(accompanied, tmp_path):
    call("train.py", *SMALL, *SIX, "evaluation=[twin]", f"hydra.run.dir={tmp_path}")
    alone, beside = weights(tmp_path / "dictionary"), weights(accompanied / "dictionary")
    assert all(torch.equal(alone[name], beside[name]) for name in alone)
    assert not (tmp_path / "companions").exists()
    said = json.loads((tmp_path / "findings.json").read_text())["notes"]
    assert any("budget.companions=[twin]" in str(note) for note in said)


def test_what_was_found_beside_the_dictionary_is_found_again_from_its_folder(accompanied):
    before = findings(accompanied)
    assert before["twin/matched_by_chance"] <= before["twin/matched/all"]
    assert {f"latent_scaling/control/{name}/tuned_only" for name in CONTROLS} <= set(before)
    beside = {name: before[f"twin/pw_mcc{name}"] for name in ("", "_untrained", "_permuted", "_random")}
    assert beside["_untrained"] == pytest.approx(beside["_random"], abs=0.02) and beside[""] != beside["_permuted"]
    run = tunediff.load(accompanied)
    assert sorted(run.companions) == ["equal", "noise", "permuted", "planted", "twin"]
    own = weights(accompanied / "dictionary")
    assert not any(torch.equal(one.W_dec, own["W_dec"]) for one in run.companions.values())
    call("evaluate.py", f"run={accompanied}", "evaluation=[latent_scaling,twin]", "trainer=cpu")
    assert findings(accompanied) == before
    table = run.table("controls").to_pydict()
    assert table["read"] == [name for name in ("pair", *CONTROLS) for _ in range(2)]
    for read, kind, called, sure in zip(*table.values(), strict=True):
        if read == "pair":
            assert before[f"latent_scaling/confirmed/{kind}"] == (sure / called if called else None)
        else:
            assert before[f"latent_scaling/control/{read}/called/{kind}"] == called


def test_what_untrained_dictionaries_share_is_what_their_start_shares(tmp_path):
    """Of two that began with the same rows in both models, the one half says the other."""
    small = [
        "budget.companions=[twin,equal]",
        "evaluation=[twin]",
        "dictionary.shared_start=true",
        "budget.tokens=1024",
    ]
    call("train.py", *SMALL, *small, "optimizer.batch=1024", f"hydra.run.dir={tmp_path}")
    found = findings(tmp_path)
    assert found["twin/pw_mcc_untrained"] > found["twin/pw_mcc_random"] + 0.02
    assert found["twin/pw_mcc"] == pytest.approx(found["twin/pw_mcc_untrained"], abs=0.1), "one step from the start"
    base, tuned = weights(tmp_path / "companions" / "equal")["W_dec"].chunk(2, dim=-1)
    assert torch.allclose(base, tuned), (
        "on equal models rows that begin alike stay alike: none is exclusive by construction"
    )


def test_an_evaluation_that_asks_of_no_label_leaves_what_labels_say(accompanied, monkeypatch):
    writers = []
    monkeypatch.setattr(study_run, "write_findings", lambda *given, **words: writers.append(words.get("by")) or {})
    given = tunediff.load(accompanied).trained()
    study_run.evaluate({"geometry": Geometry()}, given, accompanied, {})
    assert writers == [None, "geometry"]


def test_one_model_has_a_twin_alone(tmp_path):
    call(
        "train.py",
        *SMALL,
        *TWO_STEPS,
        "dictionary=sae",
        "evaluation=[twin]",
        "budget.companions=[twin,equal]",
        f"hydra.run.dir={tmp_path}",
    )
    assert [path.name for path in (tmp_path / "companions").iterdir()] == ["twin"]
    assert "twin/confirmed/tuned_only" not in findings(tmp_path) and "twin/matched/all" in findings(tmp_path)
