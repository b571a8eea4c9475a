"""Classes of latents, against a server that sorts by rule."""

import re

import pytest
import torch

from test_adapter_latents import EACH, PLANTED, standing_beside
from test_evaluations import fitted, identity_dictionary, toy_text
from tunediff.evaluations import Judge, LatentClasses, Trained
from tunediff.evaluations.judging.latent_classes import QUESTION, Verdict, raised_by, verdict_in
from tunediff.shapes import Finding, Note, Refused, Table

WORDS = {3: "doubles", 7: "gives", 20: "Wait", 41: "wants", 60: "answer"}  # latents that fire on one word each
SAID = {
    "doubles": "Reason: it doubles.\nClass: domain\nDomain: mathematics\nMechanism: input_simple",
    "gives": "Reason: a verb\nClass: language\nDomain: none\nMechanism: input_simple",
    "Wait": "Reason: a doubt\nClass: reasoning\nDomain: none\nMechanism: output",
    "wants": "Reason: a step\n**Class:** Reasoning\nDomain: none\nMechanism: input_abstract",
    "answer": "Class: uninterpretable\nDomain: none\nMechanism: none",
}


@pytest.fixture
def trained(pair, monkeypatch):
    """Five latents fire on a word each, a sixth on one token only; all others never. Latent 20 raises " answer" in the tuned
    model, and in the base, where its row is shorter, " So"."""
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    width = dictionary.widths[0]
    with torch.no_grad():
        for role, columns, length, word in (
            ("base", slice(0, width), 1.0, " So"),
            ("tuned", slice(width, None), 2.0, " answer"),
        ):
            model = pair.models[role]
            gained = model.get_output_embeddings().weight.float() * model.base_model.norm.weight.float()
            row = torch.nn.functional.normalize(gained[id_of(pair, word)] - gained.mean(0), dim=0)
            dictionary.W_dec[20, columns] = length * row
    original = Trained.readings
    spelled = [pair.tokenizers[0].decode([i]).strip() for i in range(len(pair.tokenizers[0]))]
    ids = {n: torch.tensor([i for i, text in enumerate(spelled) if text == word]) for n, word in WORDS.items()}

    def readings(self, title):
        for n, reading in enumerate(original(self, title)):
            latents = torch.zeros_like(reading.latents)
            for latent in WORDS:
                latents[:, latent] = torch.isin(reading.batch.token, ids[latent]) * (1 + reading.batch.position / 100)
            latents[0, 9] = float(n == 0)
            yield reading._replace(latents=latents)

    monkeypatch.setattr(Trained, "readings", readings)
    return Trained(pair, toy_text(), 3000, dictionary=dictionary)


def id_of(pair, word):
    (number,) = pair.tokenizers[0].encode(word, add_special_tokens=False)
    return number


def word_of(asked):
    """The one that is marked throughout."""
    (word,) = set(re.findall(r"<<\s*(\w+)>>", asked["messages"][1]["content"]))
    return word


def sorting(server, latents=None, each_layer=50, seed=0, **settings):
    judge = Judge(**{"endpoint": server.endpoint, "model": "rule", "examples": 6, "most_calls": 500, **settings})
    return LatentClasses(judge=judge, latents=latents, each_layer=each_layer, seed=seed)


def measured(evaluation, trained):
    found = list(evaluation.run(trained))
    tables = {t.name: t.columns for t in found if isinstance(t, Table)}
    return {f.name: f for f in found if isinstance(f, Finding)}, tables, [n.text for n in found if isinstance(n, Note)]


# -- what is found ---------------------------------------------------------------------------------------------------


def test_planted_classes_are_found_with_their_shares(server, trained):
    server.rule = lambda asked: SAID[word_of(asked)]
    findings, tables, notes = measured(sorting(server), trained)
    assert tables["latent_classes"] == {
        "latent": list(WORDS),
        "layer": [1] * 5,
        "class": ["domain", "language", "reasoning", "reasoning", "uninterpretable"],
        "domain": ["mathematics", None, None, None, None],
        "mechanism": ["input_simple", "input_simple", "output", "input_abstract", None],
        "reason": ["it doubles.", "a verb", "a doubt", "a step", ""],
    }
    shares = {name: findings[f"latent_classes/{name}/share"] for name in ("domain", "language", "reasoning")}
    assert {name: share.value for name, share in shares.items()} == {"domain": 0.2, "language": 0.2, "reasoning": 0.4}
    assert all(0 < share.low < share.value < share.high < 1 for share in shares.values())
    assert "share of 5 latents" in shares["domain"].meaning and "rule" in shares["domain"].meaning
    of_parts = {"domain/mathematics": 1, "domain/code": 0, "reasoning/output": 0.5, "reasoning/input_simple": 0}
    assert {name: findings[f"latent_classes/{name}/share"].value for name in of_parts} == of_parts
    assert findings["latent_classes/unreadable"].value == 0
    assert notes == ["latent_classes passed over 1 latents: fewer than 4 held-out documents activate them."]


def test_answers_that_cannot_be_read_are_counted_and_in_no_share(server, trained):
    wrong = {"Wait": "Class: reasoning\nMechanism: both", "wants": "I cannot help with that.", "gives": ""}
    server.rule = lambda asked: (SAID | wrong)[word_of(asked)]
    findings, tables, _ = measured(sorting(server), trained)
    assert findings["latent_classes/unreadable"].value == 3
    assert tables["latent_classes"]["class"] == ["domain", None, None, None, "uninterpretable"]
    assert tables["latent_classes"]["reason"] == ["it doubles.", None, None, None, ""]
    assert (
        findings["latent_classes/domain/share"].value == 0.5 and findings["latent_classes/reasoning/share"].value == 0
    )
    assert findings["latent_classes/reasoning/output/share"].value is None
    server.rule = lambda asked: "unsure"
    findings, _, _ = measured(sorting(server), trained)
    assert findings["latent_classes/unreadable"].value == 5 and findings["latent_classes/domain/share"].value is None


def test_a_verdict_needs_its_class_and_what_belongs_to_it():
    assert verdict_in("Class: domain\nDomain: Code.\nMechanism: <output>") == Verdict("domain", "code", "output", "")
    assert verdict_in("Class: language\nDomain: code\nMechanism: output\nReason: a").domain is None
    assert verdict_in("Class: uninterpretable\nMechanism: output\nReason: a") == ("uninterpretable", None, None, "a")
    for answer in (
        "Class: domain\nDomain: none\nMechanism: output",
        "Class: domain\nDomain: law\nMechanism: output",
        "Class: reasoning\nMechanism: none",
        "Class: reasoning",
        "Class: reasoning or language\nMechanism: output",
        "Class: reasoning\nMechanism: output\nClass: unsure",
        "Mechanism: output",
    ):
        assert verdict_in(answer) is None


# -- what is asked ---------------------------------------------------------------------------------------------------


def test_a_latent_is_shown_with_the_tokens_it_raises_in_the_model_it_belongs_to(server, trained):
    server.rule = lambda asked: SAID[word_of(asked)]
    measured(sorting(server, latents=[20]), trained)
    (system, question), *others = [[m["content"] for m in asked["messages"]] for _, _, asked in server.asked]
    assert not others and system == QUESTION and question.count("Passage ") == 6
    assert re.search(r'\n\nMade more likely: " answer", ("[^\n]*", ){13}"[^\n]*"$', question)
    with torch.no_grad():
        trained.dictionary.W_dec[20, trained.dictionary.widths[0] :] *= 0.1
    assert raised_by(trained, [20])[20][0] == " So"


def test_what_is_not_written_into_the_residual_stream_raises_nothing_that_is_known(server, pair, trained):
    dictionary = fitted(pair, identity_dictionary(pair.streams("mlp_in", 1)))
    server.rule = lambda asked: SAID[word_of(asked)]
    other = Trained(pair, trained.text, 3000, dictionary=dictionary)
    _, tables, notes = measured(sorting(server, latents=[3]), other)
    assert tables["latent_classes"]["class"] == ["domain"] and "showed no raised tokens" in notes[0]
    assert server.asked[0][2]["messages"][1]["content"].endswith("Made more likely: not known")


def test_so_many_of_every_layer_are_drawn_by_the_seed_among_those_alive(server, pair, tokenizer):
    server.rule = lambda asked: "Class: language\nMechanism: output"
    beside = standing_beside(pair, tokenizer)
    with torch.no_grad():
        beside.dictionary.layers[1].b_enc[:] = -100.0  # dead, but for one
        beside.dictionary.layers[1].b_enc[4] = 1.0

    def drawn(**settings):
        _, tables, _ = measured(sorting(server, **settings), beside)
        return tables["latent_classes"]["latent"], tables["latent_classes"]["layer"]

    numbers, layers = drawn(each_layer=3)
    assert layers == [0, 0, 0, 1, 2, 2, 2] and numbers[3] == EACH + 4
    assert layers == [number // EACH for number in numbers] and len(set(numbers)) == 7
    assert drawn(each_layer=3)[0] == numbers
    assert any(drawn(each_layer=3, seed=seed)[0] != numbers for seed in (1, 2))
    assert raised_by(beside, [PLANTED])[PLANTED][0] == "Wait"


# -- who is asked, and how often -------------------------------------------------------------------------------------


def test_without_an_endpoint_nothing_is_read_or_sent_and_a_note_says_so(server, trained, monkeypatch):
    monkeypatch.setattr(Trained, "readings", None)
    findings, tables, notes = measured(
        LatentClasses(judge=Judge(endpoint=None, model=None, examples=10, most_calls=500)), trained
    )
    assert not (findings or tables or server.asked)
    assert notes == [
        "latent_classes asked nobody: evaluation.latent_classes.judge.endpoint=<...> and .model=<...> name who sorts latents."
    ]


def test_no_call_beyond_most_calls(server, trained):
    server.rule = lambda asked: SAID[word_of(asked)]
    with pytest.raises(
        Refused, match=r"up to 6 times \(6 latents\), more than .*judge.most_calls=5.*latent_classes.each_layer"
    ):
        measured(sorting(server, most_calls=5), trained)
    with pytest.raises(Refused, match="up to 6 times .*latent_classes.latents"):
        measured(sorting(server, latents="rate > 0", most_calls=5), trained)
    with pytest.raises(Refused, match="up to 2 times"):
        sorting(server, latents=[3, 7], most_calls=1)  # before a model is loaded
    assert not server.asked
    measured(sorting(server, each_layer=3, most_calls=3), trained)
    assert 0 < len(server.asked) <= 3


def test_a_judge_that_cannot_be_asked_is_refused_at_once(server):
    with pytest.raises(Refused, match=r"evaluation.latent_classes.judge.model=<...>"):
        sorting(server, model=None)
    with pytest.raises(Refused, match="each_layer=1 or more"):
        sorting(server, each_layer=0)


def test_an_endpoint_that_fails_half_way_leaves_what_was_sorted(server, trained):
    server.rule = lambda asked: SAID[word] if (word := word_of(asked)) == "doubles" else (400, {"error": "no more"})
    findings, tables, notes = measured(sorting(server, at_once=1), trained)
    assert tables["latent_classes"]["latent"] == [3] and findings["latent_classes/domain/share"].value == 1
    assert "stopped with 1 of 5 latents judged" in notes[-1] and "no more" in notes[-1]
    with pytest.raises(Refused, match="no more"):
        measured(sorting(server, latents=[7]), trained)
