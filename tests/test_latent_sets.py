"""Sets of an adapter's latents, asked what they do: a tuned model that says nothing but "Wait", and the latent that does it."""

import functools

import pyarrow
import pytest
import torch
from torch import nn

from test_behaviour import by_condition, parted
from test_evaluations import identity_dictionary
from test_recovery import problems
from test_replacement import LATENTS, TEXT, random, untrained
from tunediff.evaluations import LatentSets, Telling, Trained
from tunediff.evaluations.behaviour import runner
from tunediff.evaluations.latents.selection import choose
from tunediff.generation import Batched, Decoding
from tunediff.report.behaviour import behaviour
from tunediff.shapes import ADAPTER, HYBRID, TUNED, Refused
from tunediff.text import Text
from tunediff.toy import language

SAYS_IT = 2 * LATENTS + 5  # of the last layer


class Saying(nn.Module):
    """An MLP that adds a constant."""

    def __init__(self, mlp, constant):
        super().__init__()
        self.mlp, self.constant = mlp, constant

    def forward(self, x):
        return self.mlp(x) + self.constant


@pytest.fixture
def trained(pair):
    """The tuned model's last MLP writes " Wait", the base's does not; in its place a latent does that is always active."""
    (wait,) = pair.tokenizers[0](" Wait", add_special_tokens=False)["input_ids"]
    tuned, adapter = pair.models[TUNED], random(pair)
    with torch.no_grad():
        tuned.lm_head.weight.mul_(20)  # a model that is sure of what it says
    direction = 1.5 * tuned.lm_head.weight[wait].detach()
    tuned.model.layers[2].mlp = Saying(tuned.model.layers[2].mlp, 0.4 * direction)
    for one in adapter.layers:
        one.W_dec.mul_(0.01)
    last = adapter.layers[2]
    last.W_enc[:, 5], last.b_enc[5], last.W_dec[5] = 0.0, 4.0, direction / 4
    pair.stand_beside(adapter)
    return Trained(pair, TEXT, 300, tokens_per_batch=150, dictionary=adapter)


def asked(trained, **given):
    return parted(sets(**{"latents": [SAYS_IT], "tasks": {"eggs": problems(4)}, **given}).run(trained))


def sets(**given):
    settings = {"problems": None, "chosen_by": None, "scale": -0.5, "draws": 2, "control_sizes": [1], **given}
    return LatentSets(decoding=Decoding(tokens=8), engine=Batched(8), **settings)


def table_rows(table):
    return {
        name: dict(zip(table, row, strict=True)) for *row, name in zip(*table.values(), table["condition"], strict=True)
    }


def test_the_planted_latent_is_needed_is_enough_and_negated_silences_the_tuned_model(trained):
    findings, tables, notes = asked(trained)
    rows = table_rows(tables["latent_sets"])
    said = {name: row["hesitation"] for name, row in rows.items()}
    assert said[TUNED] == said[ADAPTER] == 8 and said[HYBRID] == 0
    assert said["necessity"] == said["negation"] == 0 and said["sufficiency"] == 8
    assert said["random/necessity/1"] == said["random/negation/1"] == 8
    assert said["random/sufficiency/1"] == said["empty/sufficiency"] == 0
    for way, change in (("necessity", -8), ("sufficiency", 8), ("negation", -8)):
        where = f"latent_sets/eggs/{way}"
        assert findings[f"{where}/hesitation_change"][1:4] == (change, None, None)  # no two problems differ
        assert findings[f"{where}/hesitation_over_random"].value == change
        assert findings[f"{where}/hesitating_change"].value == change / 8
        assert rows[way]["hesitation_rate_change"] == pytest.approx(1000 * change / 8)
        assert "of the whole model" in findings[f"{where}/hesitation_change"].meaning
        assert rows[way]["reference"] == {"necessity": ADAPTER, "sufficiency": HYBRID, "negation": TUNED}[way]
    assert tables["latent_sets_latents"]["latent"] == [SAYS_IT] and tables["latent_sets_latents"]["layer"] == [2]
    assert tables["latent_sets_latents"]["within"] == [5] and tables["latent_sets_latents"]["mean"] == [4.0]
    assert all("cut by the budget" in note for note in notes)


def test_the_page_puts_each_control_below_the_set_it_belongs_to(trained):
    tables = asked(trained)[1]
    drawn = behaviour({name: pyarrow.table(columns) for name, columns in tables.items()})[0]["conditions"][0]["columns"]
    under, above = {}, None
    for title, control in zip(drawn["condition"], drawn["control"], strict=True):
        above = above if control else title
        under |= {title: above} if control else {}
    ways = ("adapter without {}", "hybrid with {} alone", "tuned with {} negated")
    expected = {way.format("random latents (1, 2 draws)"): way.format("the set") for way in ways}
    assert under == {**expected, "hybrid with decoder biases alone": "hybrid with the set alone"}


def test_responses_are_as_probable_as_the_model_finds_them_that_was_changed(trained):
    rows = by_condition(asked(trained, control_sizes=[])[1]["latent_sets_conditions"])
    assert rows["sufficiency"]["perplexity"] > 100 * rows[ADAPTER]["perplexity"]  # the hybrid would not have said it
    assert rows["necessity"]["perplexity"] > 100 * rows[ADAPTER]["perplexity"]
    assert rows["necessity"]["reference"] == ADAPTER and rows["empty/sufficiency"]["control"]
    assert not rows["sufficiency"]["control"] and rows["negation"]["role"] == ADAPTER


def test_all_latents_are_the_adapter_none_the_hybrid_and_nothing_negated_the_tuned_model(trained):
    alive = trained.statistics.alive.nonzero()[:, 0].tolist()
    table = asked(trained, latents=alive, scale=0.0, control_sizes=[])[1]["latent_sets_outputs"]
    written = {}
    for condition, response in zip(table["condition"], table["response"], strict=True):
        written.setdefault(condition, []).append(response)
    assert written["sufficiency"] == written[ADAPTER] != written[HYBRID]
    assert written["necessity"] == written["empty/sufficiency"] == written[HYBRID]  # biases that are zero
    assert written["negation"] == written[TUNED]


def test_random_sets_are_of_other_latents_that_live_and_are_left_out_where_there_are_too_few(trained):
    seen = trained.statistics
    evaluation = sets(latents=[SAYS_IT, 0], tasks={}, draws=3, control_sizes=[4, 1, 99])
    questions, (note,) = evaluation.questions(trained.dictionary, seen, [SAYS_IT, 4])
    drawn = [set(some) for one in questions if (one.which, one.asked) == ("random", "necessity") for some in one.draws]
    assert [len(some) for some in drawn] == [2, 2, 2, 8, 8, 8] and len(set(map(frozenset, drawn))) == 6
    assert all(seen.alive[list(some)].all() and not some & {SAYS_IT, 4} for some in drawn)
    assert "no random sets of 198 latents" in note
    unbiased = untrained(trained.pair, decoder_bias=False)
    assert not any(one.which == "empty" for one in evaluation.questions(unbiased, seen, [4])[0])


def test_every_set_keeps_its_own_responses(trained, tmp_path, monkeypatch):
    kept = Trained(trained.pair, TEXT, 300, tokens_per_batch=150, folder=tmp_path, dictionary=trained.dictionary)
    whole = asked(kept, control_sizes=[2])
    assert len(list((tmp_path / "outputs").iterdir())) == 3 + 3 * (1 + 2) + 1  # each of the two draws by itself
    monkeypatch.setattr(runner, "generate", None)  # nothing is asked again
    assert asked(kept, control_sizes=[2]) == whole


def test_a_set_may_be_chosen_by_the_label_that_it_tells(trained):
    text = Text(functools.partial(language.mixture, 1, {"trace": 1.0}), held_out=language.is_held_out, context=256)
    fresh = Trained(trained.pair, text, 2000, dictionary=trained.dictionary)
    read = {False: [], True: []}
    for batch in fresh.held_out:
        (x,) = trained.pair.read(batch, trained.dictionary.streams[:1])
        for label, rows in read.items():
            rows.append(x[batch.labels["hesitation"] == label])
    first = trained.dictionary.layers[0]
    first.W_enc[:, 7] = 50 * (torch.cat(read[True]).mean(0) - torch.cat(read[False]).mean(0))
    assert Telling("hesitation", count=1, at=None).choose(fresh, fresh.statistics) == [7]
    findings, tables, _ = asked(fresh, latents=None, chosen_by=Telling("hesitation", count=1, at=None))
    assert tables["latent_sets_latents"]["latent"] == [7]
    assert findings["latent_sets/eggs/necessity/hesitation_change"].value == 0  # it tells, and does nothing
    with pytest.raises(
        Refused, match="latents that belong most to one of two models, and this dictionary reads adapter only"
    ):
        choose(fresh, fresh.statistics, 3, None)


def test_another_dictionary_an_empty_set_and_sizes_below_one_are_refused(trained):
    crosscoder = identity_dictionary(trained.pair.streams("mlp_in", 1))
    with pytest.raises(Refused, match="evaluation=latent_sets asks about models with a transcoder adapter"):
        asked(Trained(trained.pair, TEXT, 100, dictionary=crosscoder))
    with pytest.raises(Refused, match=r"control_sizes=\[0\]: each is a multiple"):
        asked(trained, control_sizes=[0])
    with pytest.raises(Refused, match="no latent is chosen"):
        asked(trained, latents=[])
