"""What a transcoder adapter recovers: of answers that are planted, and on the embedded pair."""

import dataclasses

import pyarrow
import pytest

from test_behaviour import by_condition, parted
from test_evaluations import identity_dictionary
from test_recovery import ALL, problems
from test_replacement import TEXT, untrained
from tunediff.evaluations import AdapterRecovery, Trained
from tunediff.generation import Batched, Decoding, Response
from tunediff.models import ModelPair, ModelSource
from tunediff.report.behaviour import behaviour
from tunediff.shapes import BASE, TUNED, Refused

SOLVED = {"base": 30, "hybrid": 10, "adapter": 70, "tuned": 90}  # of the first so many of 100 problems
HESITATIONS = {"base": 0, "hybrid": 1, "adapter": 2, "tuned": 2}


@dataclasses.dataclass(frozen=True)
class Planted:
    """Writes what is planted of the role that is asked; `log` is told which prompts it was given."""

    solved: dict
    log: dict

    def respond(self, request):
        role, asked, tokenizer = request.role, request.asked, request.tokenizer
        self.log[role] = tokenizer.decode(asked[0].ids)
        for place, one in enumerate(asked):
            number = int(one.name.split()[1])
            answer = number if number < self.solved[role] else -1
            said = "Wait, no. " * HESITATIONS[role] + f"The answer is \\boxed{{{answer}}}."
            yield place, Response(tokenizer(said, add_special_tokens=False)["input_ids"], said, True, False)


def measured(pair, solved=SOLVED, log=None, tasks=None, dictionary=None):
    adapter = untrained(pair)
    pair.stand_beside(adapter)
    asked = AdapterRecovery(
        tasks=tasks or {"eggs": problems()},
        decoding=Decoding(tokens=64),
        engine=Planted(solved, {} if log is None else log),
        **ALL,
    )
    return parted(asked.run(Trained(pair, TEXT, 100, dictionary=dictionary or adapter)))


def test_what_was_planted_is_recovered_of_the_hybrid_and_of_the_base(pair):
    log = {}
    findings, tables, notes = measured(pair, log=log)
    for who, right in SOLVED.items():
        accuracy = findings[f"adapter_recovery/eggs/{who}/accuracy"]
        assert accuracy.value == right / 100 and accuracy.low < accuracy.value < accuracy.high
        assert findings[f"adapter_recovery/eggs/{who}/hesitations_per_response"].value == HESITATIONS[who]
        assert (findings[f"adapter_recovery/eggs/{who}/hesitations"].value > 0) == (HESITATIONS[who] > 0)
    of_hybrid, of_base = (findings[f"adapter_recovery/eggs/accuracy/recovered_of_{of}"] for of in ("hybrid", "base"))
    assert of_hybrid.value == pytest.approx(60 / 80) and 0.6 < of_hybrid.low < 0.75 < of_hybrid.high < 0.9
    assert of_base.value == pytest.approx(40 / 60)
    assert findings["adapter_recovery/eggs/hesitations/recovered_of_hybrid"].value == 1
    assert "hybrid 10.0%, adapter 70.0%, tuned 90.0%" in of_hybrid.meaning and not notes
    table = tables["adapter_recovery"]
    assert table["measure"] == ["accuracy", "tokens a response", "hesitations a response"]
    assert [table[who][0] for who in SOLVED] == [0.3, 0.1, 0.7, 0.9]
    assert table["recovered_of_hybrid"][0] == of_hybrid.value and table["recovered_of_base_low"][0] == of_base.low
    assert "Solve: Anna" in log["base"] and "base was asked 'Solve: {question}'" in of_base.meaning
    assert log["hybrid"] == log["adapter"] == log["tuned"] and "Solve" not in log["tuned"]


def test_the_page_has_the_four_models_beside_each_other(pair):
    tables = measured(pair)[1]
    shown, _ = behaviour({name: pyarrow.table(columns) for name, columns in tables.items()})
    assert shown["conditions"][0]["columns"]["role"] == list(SOLVED)
    rows = by_condition(tables["adapter_recovery_conditions"])
    assert rows["adapter"]["reference"] == "hybrid" and rows["adapter"]["difference"] == pytest.approx(0.6)


def test_a_hybrid_that_does_no_worse_leaves_nothing_to_recover_and_a_base_still_may(pair):
    findings, tables, notes = measured(pair, {"base": 30, "hybrid": 95, "adapter": 70, "tuned": 90})
    assert "adapter_recovery/eggs/accuracy/recovered_of_hybrid" not in findings
    assert tables["adapter_recovery"]["recovered_of_hybrid"][0] is None
    assert any("tuned (90.0%) solves fewer problems than hybrid (95.0%)" in note for note in notes)
    assert findings["adapter_recovery/eggs/accuracy/recovered_of_base"].value == pytest.approx(40 / 60)


def test_without_any_hesitation_the_interval_is_that_of_a_count_of_zero(pair):
    base = measured(pair)[0]["adapter_recovery/eggs/base/hesitations_per_response"]
    assert base.low == 0 and base.high == pytest.approx(0.0369, abs=1e-4)  # -ln(0.025) / 100


def test_another_dictionary_is_refused(pair):
    with pytest.raises(Refused, match="evaluation=adapter_recovery asks about models with a transcoder adapter"):
        measured(pair, dictionary=identity_dictionary(pair.streams("mlp_in", 1)))


def test_on_the_embedded_pair_an_untrained_adapter_recovers_nothing_of_what_is_lost_with_the_tuned_mlps():
    sources = (ModelSource(f"pkg://tunediff.toy/weights/{role}", dtype="float32") for role in (BASE, TUNED))
    pair = ModelPair(*sources).load()
    adapter = untrained(pair)
    pair.stand_beside(adapter)
    asked = AdapterRecovery(
        tasks={"eggs": problems(24, "{question}")}, decoding=Decoding(tokens=100), engine=Batched(24), **ALL
    )
    findings, tables, _ = parted(asked.run(Trained(pair, TEXT, 100, dictionary=adapter)))
    responses = tables["adapter_recovery_outputs"]["response"]
    assert responses[24:48] == responses[48:72] != responses[72:]
    assert findings["adapter_recovery/eggs/tokens/recovered_of_hybrid"][1:4] == (0, None, None)
