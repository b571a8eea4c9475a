"""Directions against planted truths: windows before events, means, rows, what is left of one without another, and their files."""

import copy
import dataclasses
import itertools
import json
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch.nn.functional import cosine_similarity

from tunediff.claims import Number
from tunediff.directions import (
    ContrastingTexts,
    DecoderRow,
    DifferenceOfMeans,
    Direction,
    FromFile,
    Orthogonal,
    PairDifference,
    PersonaVector,
    PrincipalComponent,
    RandomDirection,
    Unembedding,
    WithoutLogitEffect,
    read_direction,
)
from tunediff.directions.means import read, streams_at
from tunediff.directions.windows import Window, displaced, windows
from tunediff.evaluations import DirectionsByLayer, Given
from tunediff.generation import Batched, Decoding, ask, generate
from tunediff.models import ModelPair, ModelSource, unembedding
from tunediff.shapes import Finding, Refused, Table
from tunediff.text import Batch, Manner, Text
from tunediff.text.batches import Document, collate
from tunediff.toy import language


def toy_text(kind="trace", rows=None, **settings):
    settings = {"held_out": 0.1, "context": 256, "window": 16, "tokens_per_batch": 1024, **settings}
    return Text(lambda: itertools.islice(language.rows(0, kind), rows), **settings)


@pytest.fixture(scope="module")
def given(folders):
    """A pair of tiny models: the tuned one is the base with everything that leaves layer 0 moved by `planted`."""
    source = ModelSource(str(folders["base"]), dtype="float32")
    pair = ModelPair(source, source).load()
    pair.models["tuned"] = copy.deepcopy(pair.models["base"])
    return SimpleNamespace(pair=pair, text=toy_text(), dictionary=None)


def of_begins(*lengths_and_begins, segments=None):
    """A batch of documents of these lengths, an event beginning at each of the given tokens."""
    documents = []
    for number, (length, begins) in enumerate(lengths_and_begins):
        flags = [place in begins for place in range(length)]
        ids = (list(range(1, length + 1)),)
        kinds = segments or [2] * length
        documents.append(
            Document(number, ids, (list(range(length)),), kinds, [0.0] * length, {"x": flags}, {"x": flags}, number)
        )
    return collate(documents)


def every(batch: Batch):
    return torch.ones_like(batch.token, dtype=torch.bool)


def begins(batch: Batch):
    return batch.beginning("x").nonzero()[:, 0]


# -- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "tokens"),
    [
        (Window(12, 4, -1), range(7, 13)),  # as the authors' code: s-13 to s-8
        (Window(12, 4, 0), range(8, 13)),  # as the paper says: five tokens from s-12 on
        (Window(0, 0, 0), [20]),
        (Window(1, 0, 0), [19]),
    ],
)
def test_a_window_is_that_of_the_paper_or_of_its_code(window, tokens):
    batch = of_begins((30, [20]))
    assert windows(batch, begins(batch), window, every(batch)).times.nonzero()[:, 0].tolist() == list(tokens)


def test_tokens_in_two_windows_count_twice_and_windows_that_leave_the_text_not_at_all():
    batch = of_begins((30, [5, 20, 22]), (8, [7]))
    found = windows(batch, begins(batch), Window(12, 4, -1), every(batch))
    assert (found.events, found.outside) == (2, 2)
    assert found.times.sum() == 12 and found.times.max() == 2
    assert found.times[30:].sum() == 0  # no window reaches into another document


def test_only_tokens_that_count_are_in_a_window():
    batch = of_begins((30, [20]))
    where = every(batch)
    where[7:10] = False
    found = windows(batch, begins(batch), Window(12, 4, -1), where)
    assert found.times.nonzero()[:, 0].tolist() == [10, 11, 12] and found.events == 1
    where[:] = False
    assert windows(batch, begins(batch), Window(12, 4, -1), where).outside == 1


@pytest.mark.parametrize("settings", [(0, 4, 0), (12, 4, 6), (-1, 0, 0), (3, -1, 0)])
def test_a_window_that_is_empty_or_holds_the_event_is_refused(settings):
    with pytest.raises(Refused, match="tokens"):
        Window(*settings)


def test_displaced_events_stay_in_their_documents_and_fit():
    batch = of_begins((40, [20, 30]), (25, [14]), (6, [5]))
    generator = torch.Generator().manual_seed(0)
    seen = torch.cat([displaced(batch, begins(batch), Window(12, 4, -1), every(batch), generator) for _ in range(200)])
    assert batch.sequence[seen].bincount().tolist() == [400, 200]  # the last document has no room for a window
    assert batch.position[seen].min() == 13
    assert set(batch.position[seen[batch.sequence[seen] == 1]].tolist()) == set(range(13, 25))


# -- differences of means --------------------------------------------------------------------------------------------


def test_a_difference_of_means_is_that_of_the_vectors_of_its_tokens(given):
    source = DifferenceOfMeans(label="backtracks", offset=2, window=1, shift=0, tokens=3000)
    found = source.find(given, "tuned", [0, 1])
    own, whole = [], []
    for batch, (value,) in read(given.pair, given.text, streams_at(given.pair, "tuned", "resid_post", [1]), 3000):
        response = batch.segment != 0
        for place in batch.beginning("backtracks").nonzero()[:, 0].tolist():
            inside = [
                n
                for n in range(len(value))
                if batch.sequence[n] == batch.sequence[place]
                and batch.position[place] - 2 <= batch.position[n] <= batch.position[place] - 1
            ]
            own += [value[n] for n in inside]
        whole.append(value[response])
    expected = torch.stack(own).double().mean(0) - torch.cat(whole).double().mean(0)
    torch.testing.assert_close(found.at(1).double(), expected, rtol=1e-4, atol=1e-5)
    assert found.provenance["window_tokens"] == len(own) and found.provenance["reference_tokens"] == len(
        torch.cat(whole)
    )
    assert found.provenance["events"] + found.provenance["outside"] > 10 and found.layers == [0, 1]


def test_against_all_tokens_it_is_the_complements_by_the_share_of_the_others(given):
    """v = mean(D+) - mean(D) and v' = mean(D+) - mean(rest): v = (1 - n+/n) v', where no token is in two windows."""
    against = {
        reference: DifferenceOfMeans(
            label="backtracks", offset=1, window=0, shift=0, reference=reference, tokens=3000
        ).find(given, "base", [1])
        for reference in ("tokens", "complement")
    }
    said = against["tokens"].provenance
    share = 1 - said["window_tokens"] / said["reference_tokens"]
    torch.testing.assert_close(against["tokens"].at(1), share * against["complement"].at(1), rtol=1e-4, atol=1e-6)


def test_events_of_all_labels_as_reference_hold_the_own_ones(given):
    alone = DifferenceOfMeans(
        label="backtracks", reference="events", among=["backtracks"], offset=1, window=0, shift=0, tokens=2000
    )
    with pytest.raises(Refused, match="zero"):
        alone.find(given, "base", [1])
    among = dataclasses.replace(alone, among=["backtracks", "step_end"])
    counted = among.find(given, "base", [1]).provenance
    assert counted["reference_tokens"] > counted["window_tokens"]


def test_a_planted_direction_before_events_is_found_and_equal_models_agree(given, monkeypatch):
    planted = torch.randn(given.pair.width("base", "resid_post"), generator=torch.Generator().manual_seed(1))
    whole = type(given.pair).read

    def moved(self, batch, streams):
        before = torch.zeros_like(batch.token, dtype=torch.bool)
        events = batch.beginning("backtracks").nonzero()[:, 0]
        before[(events - 1).clamp(min=0)] = True
        values = whole(self, batch, streams)
        return [
            v + 100.0 * before[:, None] * planted if s.role == "tuned" else v
            for s, v in zip(streams, values, strict=True)
        ]

    source = DifferenceOfMeans(label="backtracks", offset=1, window=0, shift=0, tokens=3000)
    same = {role: source.find(given, role, [0]).at(0) for role in ("base", "tuned")}
    assert torch.equal(same["base"], same["tuned"])
    monkeypatch.setattr(type(given.pair), "read", moved)
    found = source.find(given, "tuned", [0]).at(0)
    assert cosine_similarity(found, planted, dim=0) > 0.99
    assert torch.equal(source.find(given, "base", [0]).at(0), same["base"])


def test_no_event_is_said_with_what_was_looked_for(given):
    with pytest.raises(Refused, match=r"No event with tokens -13 to -8 before 'nothing'"):
        DifferenceOfMeans(label="nothing", tokens=1000).find(given, "base", [0])
    with pytest.raises(Refused, match=r"the windows of \d+ events begin before their text does"):
        DifferenceOfMeans(label="backtracks", offset=900, window=0, tokens=1000).find(given, "base", [0])
    with pytest.raises(Refused, match="layers 0 to"):
        DifferenceOfMeans(label="backtracks", tokens=1000).find(given, "base", [99])
    with pytest.raises(Refused, match="choose tokens, complement, events"):
        DifferenceOfMeans(label="backtracks", reference="all")
    with pytest.raises(Refused, match="among"):
        DifferenceOfMeans(label="backtracks", reference="events")
    with pytest.raises(Refused, match="segments"):
        DifferenceOfMeans(label="backtracks", segments=["thoughts"], tokens=1000).find(given, "base", [0])


def test_contrasting_texts_weigh_responses_and_not_tokens(given):
    shows, shows_not = (toy_text(kind, 12, held_out=0.0) for kind in ("trace", "direct"))
    found = ContrastingTexts(
        shows=shows, shows_not=shows_not, responses=None, segments=["prefix", "thinking", "answer"]
    ).find(given, "base", [1])
    means = []
    for text in (shows, shows_not):
        rows = {}
        for batch, (value,) in read(given.pair, text, streams_at(given.pair, "base", "resid_post", [1]), None):
            for n in (batch.segment != 0).nonzero()[:, 0].tolist():
                rows.setdefault(int(batch.document[n]), []).append(value[n])
        means.append(torch.stack([torch.stack(some).double().mean(0) for some in rows.values()]).mean(0))
    torch.testing.assert_close(found.at(1).double(), means[0] - means[1], rtol=1e-4, atol=1e-5)
    assert (found.provenance["responses_with"], found.provenance["responses_without"]) == (12, 12)


class Halves:
    """A judge that finds the trait in every other response."""

    def __init__(self):
        self.asked = []

    def verdicts(self, asked, what):
        self.asked += asked
        return [SimpleNamespace(trait=(90.0, 10.0, None)[n % 3]) for n in range(len(asked))], []


PERSONA = {
    "trait": "calm",
    "prompts": [{"pos": "Okay.", "neg": "Wait."}, {"pos": "So.", "neg": "Hmm."}],
    "questions": ["Anna has 3 pens. How many pens?", "Ben has 9 eggs. He buys 2. How many eggs?"],
    "rollouts": 2,
    "tokens": 6,
}


def test_a_persona_vector_is_that_of_the_models_own_answers(given):
    """Recomputed one response at a time, without padding."""
    found = PersonaVector(**PERSONA).find(given, "base", [0, 1])
    model, tokenizer = given.pair.models["base"], given.pair.tokenizers[0]
    means = []
    for side in ("pos", "neg"):
        rows = []
        for number, prompt in enumerate(PERSONA["prompts"]):
            for n, question in enumerate(question for question in PERSONA["questions"] for _ in range(2)):
                (asked,) = ask([(f"calm {number} {side} {n}", question)], tokenizer, Manner(system=prompt[side]))
                decoding = Decoding(tokens=6, temperature=1.0, seed=0)
                (response,) = generate(given.pair, "base", [asked], decoding, engine=Batched(1))
                with torch.no_grad():
                    ids = torch.tensor([[*asked.ids, *response.ids]])
                    hidden = model(ids, output_hidden_states=True).hidden_states
                rows.append(hidden[2][0, len(asked.ids) :].double().mean(0))
        means.append(torch.stack(rows).mean(0))
    assert cosine_similarity(found.at(1).double(), means[0] - means[1], dim=0) > 0.99999
    assert (found.provenance["responses_with"], found.provenance["responses_without"]) == (8, 8)
    assert "prompts" not in found.provenance


def test_answers_on_the_wrong_side_do_not_count(given):
    judge = Halves()
    found = PersonaVector(**PERSONA, scorer=judge).find(given, "base", [0])
    assert len(judge.asked) == 16 and {question for question, _ in judge.asked} == set(PERSONA["questions"])
    assert (found.provenance["responses_with"], found.provenance["responses_without"]) == (
        4,
        2,
    )  # of 4 each: 90, 10, none, 90
    with pytest.raises(Refused, match="No response under the system prompts 'pos' of calm counts: the judge"):
        PersonaVector(**PERSONA, scorer=judge, from_score=95).find(given, "base", [0])


def test_a_persona_without_prompts_questions_or_file_is_refused(given, tmp_path):
    with pytest.raises(Refused, match="needs prompts"):
        PersonaVector(trait="calm")
    with pytest.raises(Refused, match="from 1"):
        PersonaVector(**{**PERSONA, "rollouts": 0})
    with pytest.raises(Refused, match="pairs, {pos"):
        PersonaVector(**{**PERSONA, "prompts": [{"pos": "Okay."}]}).find(given, "base", [0])
    file = tmp_path / "traits.jsonl"
    row = {
        "trait": "calm",
        "split": "extract",
        "instruction": PERSONA["prompts"],
        "questions": json.dumps(PERSONA["questions"]),
    }
    file.write_text(json.dumps(row) + "\n")
    of_file = PersonaVector(trait="calm", file=str(file), rollouts=2, tokens=6).find(given, "base", [1])
    assert torch.equal(of_file.at(1), PersonaVector(**PERSONA).find(given, "base", [1]).at(1))
    with pytest.raises(Refused, match="no trait angry"):
        PersonaVector(trait="angry", file=str(file)).find(given, "base", [0])


def test_the_pairs_mean_difference_and_first_component_are_the_planted_ones(given, monkeypatch):
    width = given.pair.width("base", "resid_post")
    shift, axis = torch.randn(2, width, generator=torch.Generator().manual_seed(2))
    whole = type(given.pair).read

    def moved(self, batch, streams):
        times = (batch.token % 7).float()[:, None]
        values = whole(self, batch, streams)
        return [v + shift + times * axis if s.role == "tuned" else v for s, v in zip(streams, values, strict=True)]

    with pytest.raises(Refused, match="zero"):
        PairDifference(tokens=500).find(given, "tuned", [0])
    with pytest.raises(Refused, match="does not vary"):
        PrincipalComponent(tokens=500).find(given, "tuned", [0])
    monkeypatch.setattr(type(given.pair), "read", moved)
    assert cosine_similarity(PairDifference(tokens=500).find(given, "tuned", [0]).at(0), shift + 3 * axis, dim=0) > 0.9
    assert cosine_similarity(PrincipalComponent(tokens=500).find(given, "tuned", [0]).at(0), axis, dim=0).abs() > 0.999
    shares = PrincipalComponent(tokens=500).find(given, "tuned", [0, 1]).provenance["variance_share"]
    assert shares == pytest.approx([1.0, 1.0], abs=1e-4)


# -- rows, chance, what is left --------------------------------------------------------------------------------------


def test_an_unembedding_row_raises_its_token_most_and_what_is_left_without_it_not_at_all(given):
    pair = given.pair
    weight, gain = unembedding(pair.models["base"])
    number = pair.tokenizers[0].encode(" Wait", add_special_tokens=False)[0]
    found = Unembedding(tokens=[" Wait"]).find(given, "base", [0, 1])
    centred = weight - weight[: len(pair.tokenizers[0])].mean(0)
    effects = (centred * gain) @ found.at(1)
    assert found.at(1).norm() == pytest.approx(1) and torch.equal(found.at(0), found.at(1))
    assert effects[number] > 0.9 * (centred[number] * gain).norm()
    without = WithoutLogitEffect(source=RandomDirection(seed=3), tokens=[" Wait", " Hmm"]).find(given, "base", [1])
    for text in (" Wait", " Hmm"):
        row = centred[pair.tokenizers[0].encode(text, add_special_tokens=False)[0]] * gain
        assert abs(float(row @ without.at(1))) < 1e-5 * float(row.norm())
    assert without.at(1).norm() == pytest.approx(1)
    with pytest.raises(Refused, match="nothing is left"):
        WithoutLogitEffect(source=Unembedding(tokens=[" Wait"]), tokens=[" Wait"]).find(given, "base", [0])


def test_random_directions_have_streams_of_their_own_and_orthogonal_ones_are(given):
    drawn = [RandomDirection(seed=seed, draw=draw).find(given, "base", [0, 1]) for seed in (0, 1) for draw in (0, 1)]
    rows = torch.stack([one.at(layer) for one in drawn for layer in (0, 1)])
    assert torch.allclose(rows.norm(dim=1), torch.ones(8)) and len({tuple(row.tolist()) for row in rows}) == 8
    to = Unembedding(tokens=[" Wait"])
    left = Orthogonal(source=RandomDirection(seed=0), to=to).find(given, "base", [1]).at(1)
    assert abs(
        cosine_similarity(left, to.find(given, "base", [1]).at(1), dim=0)
    ) < 1e-6 and left.norm() == pytest.approx(1)
    with pytest.raises(Refused, match="nothing is left"):
        Orthogonal(source=to, to=to).find(given, "base", [0])


def test_a_decoder_row_is_that_of_the_dictionary_in_the_models_units(given):
    with pytest.raises(Refused, match="a study with a dictionary"):
        DecoderRow(latent=0).find(given, "base", [0])
    streams = given.pair.streams("resid_post", 1)
    width = streams[0].width
    rows = torch.arange(6.0 * width).reshape(3, 2 * width) + 1
    scale = torch.full((2 * width,), 4.0)
    made = SimpleNamespace(
        latents=3, W_dec=rows, normalisation=SimpleNamespace(scale=scale), streams=streams, widths=[width, width]
    )
    study = SimpleNamespace(pair=given.pair, text=given.text, dictionary=made)
    found = DecoderRow(latent=2).find(study, "tuned", [1])
    assert torch.equal(found.at(1), rows[2, width:] / 4)
    with pytest.raises(Refused, match="reads the tuned model at"):
        DecoderRow(latent=2).find(study, "tuned", [0])
    with pytest.raises(Refused, match="latents 0 to 2"):
        DecoderRow(latent=3).find(study, "tuned", [1])


# -- a direction and its file ----------------------------------------------------------------------------------------


def test_increments_add_up_to_the_vector_of_each_layer():
    vectors = {layer: torch.randn(5, generator=torch.Generator().manual_seed(layer)) for layer in (1, 2, 4)}
    whole = Direction(vectors, "resid_post", {"source": "x"})
    steps = whole.increments()
    for layers in ([1], [1, 2], [1, 2, 4]):
        torch.testing.assert_close(sum(steps.at(layer) for layer in layers), whole.at(layers[-1]))


def test_a_file_gives_the_direction_back_and_any_other_is_refused_by_name(given, tmp_path):
    found = DifferenceOfMeans(label="backtracks", offset=1, window=0, shift=0, tokens=1000, normalise="unit").find(
        given, "base", [0, 1]
    )
    found.save(tmp_path / "deep" / "base.safetensors")
    again = read_direction(tmp_path / "deep" / "base.safetensors")
    assert again.provenance == found.provenance and again.hookpoint == "resid_post"
    assert all(torch.equal(again.at(layer), found.at(layer)) for layer in (0, 1))
    chosen = FromFile(path=str(tmp_path / "deep" / "base.safetensors")).find(given, "tuned", [1])
    assert chosen.layers == [1] and torch.equal(chosen.at(1), found.at(1))
    with pytest.raises(Refused, match="no vector at layer 7"):
        FromFile(path=str(tmp_path / "deep" / "base.safetensors")).find(given, "tuned", [7])
    Direction({0: torch.ones(3)}, "resid_post", {"source": "narrow"}).save(tmp_path / "narrow.safetensors")
    with pytest.raises(Refused, match=r"narrow has a vector of 3 numbers"):
        FromFile(path=str(tmp_path / "narrow.safetensors")).find(given, "base", [0])
    for name, content in (("rotten", b"\x09" * 40), ("empty", b""), ("other", None)):
        place = tmp_path / f"{name}.safetensors"
        if content is None:
            safetensors.torch.save_file({"0": torch.ones(3)}, place)
        else:
            place.write_bytes(content)
        with pytest.raises(Refused, match=f"{name}.safetensors is no file of a direction"):
            read_direction(place)
    with pytest.raises(Refused, match="there is no such file"):
        read_direction(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("vector", [torch.zeros(3), torch.tensor([1.0, float("nan")]), torch.ones(2, 2)])
def test_no_direction_is_zero_or_no_vector(vector):
    with pytest.raises(Refused, match="layer 0"):
        Direction({0: vector}, "resid_post", {"source": "x"})


# -- evaluation=directions -------------------------------------------------------------------------------------------


def table_rows(asked, pair, given):
    columns = next(item.columns for item in asked.run(Given(pair, given.text, 1000)) if isinstance(item, Table))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_equal_models_have_cosine_1_beside_a_null_of_1_and_other_models_not(given, folders, tmp_path):
    source = DifferenceOfMeans(label="backtracks", offset=1, window=0, shift=0, tokens=3000)
    asked = DirectionsByLayer(direction=source, draws=3)
    found = list(asked.run(Given(given.pair, given.text, 1000, folder=tmp_path)))
    rows = next(item.columns for item in found if isinstance(item, Table))
    assert rows["cosine"] == pytest.approx([1.0] * len(rows["layer"])) == rows["null"]
    for role in ("base", "tuned"):
        assert read_direction(tmp_path / "directions" / f"{role}.safetensors").layers == rows["layer"]
    others = ModelPair(*(ModelSource(str(folders[name]), dtype="float32") for name in ("base", "tuned"))).load()
    rows = {item.name: item for item in asked.run(Given(others, given.text, 1000)) if isinstance(item, Finding)}
    assert all(one.low < one.value < one.high < 1 for one in rows.values())
    (row, *_), chosen = table_rows(asked, others, given), DirectionsByLayer(direction=source, draws=3, layer=0)
    found = {item.name: item for item in chosen.run(Given(others, given.text, 1000)) if isinstance(item, Finding)}
    cosine, null = (Number(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in ("cosine", "null"))
    assert found["directions/cosine"][1:4] == (cosine.value, cosine.low, cosine.high)
    more = cosine.less(null)
    assert found["directions/over_null"][1:4] == pytest.approx((more.value, more.low, more.high))
    random = list(DirectionsByLayer(direction=Unembedding(), draws=50).run(Given(others, given.text, 1000)))
    columns = next(item.columns for item in random if isinstance(item, Table))
    assert all(low < 0 < high for low, high in zip(columns["null_low"], columns["null_high"], strict=True))


def test_against_other_events_the_null_is_of_other_events(given):
    """Displaced to any token, every draw would hold what sets all such events apart from the rest, and none would be near 0."""
    source = DifferenceOfMeans(
        label="hesitation_follows", offset=0, window=0, shift=0, reference="events", among=["step_end"], tokens=3000
    )
    sums = source.measured(given, ["base"], [1], draws=20).sums["base"][0]
    apart = dataclasses.replace(source, label="step_end", reference="complement", among=[])
    common = apart.find(given, "base", [1]).at(1).double()
    assert abs(cosine_similarity(sums.displaced().mean(0), common, dim=0)) < 0.5
    assert sums.displaced().norm(dim=1).max() < 0.5 * common.norm()


def test_one_vector_for_both_models_has_no_cosine(given, folders):
    others = ModelPair(*(ModelSource(str(folders[name]), dtype="float32") for name in ("base", "tuned"))).load()
    found = list(DirectionsByLayer(direction=PairDifference(tokens=500)).run(Given(others, given.text, 500)))
    assert any("one vector for both models" in getattr(one, "text", "") for one in found)
    assert not any(isinstance(one, Finding | Table) for one in found)


@pytest.mark.parametrize(
    ("tensors", "said", "why"),
    [
        ({"1": torch.ones(3), "01": -torch.ones(3)}, {}, "'01' is no layer"),
        ({"-1": torch.ones(3)}, {}, "'-1' is no layer"),
        ({"1": torch.ones(3, dtype=torch.int64)}, {}, "floating-point"),
        ({"1": torch.full((3,), 3e38)}, {}, "longer than numbers of 32 bits"),
        ({"1": torch.ones(3)}, {"provenance": "[1]"}, "provenance is no object"),
        ({"1": torch.ones(3)}, {"hookpoint": "nowhere"}, "hookpoint 'nowhere' is unknown"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tensors, said, why, tmp_path):
    whole = {"format": "tunediff direction 1", "hookpoint": "resid_post", "provenance": "{}", **said}
    safetensors.torch.save_file(tensors, tmp_path / "odd.safetensors", metadata=whole)
    with pytest.raises(Refused, match=why):
        read_direction(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: DifferenceOfMeans(label="x", offset=0, window=2), "window of tokens"),
        (lambda: DifferenceOfMeans(label="x", tokens=0), "from 1"),
        (lambda: DifferenceOfMeans(label="x", segments=[]), "some segments"),
        (lambda: DifferenceOfMeans(label="x", normalise="long"), "none or unit"),
        (lambda: ContrastingTexts(shows=None, shows_not=None, responses=0), "from 1"),
        (lambda: Unembedding(tokens=[""]), "texts that the tokenizer spells"),
        (lambda: DirectionsByLayer(direction=Unembedding(), layers=[1, 1]), "each once"),
        (lambda: DirectionsByLayer(direction=Unembedding(), layers=[1], layer=0), "choose of directions.layers"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_anything_is_read(made, why):
    with pytest.raises(Refused, match=why):
        made()


def test_a_text_without_end_is_not_read_to_its_end(given, monkeypatch):
    monkeypatch.setattr("tunediff.directions.means.MOST", 20)
    endless = ContrastingTexts(shows=toy_text(held_out=0.0), shows_not=toy_text(held_out=0.0), responses=None)
    with pytest.raises(Refused, match="name a number"):
        endless.find(given, "base", [0])
