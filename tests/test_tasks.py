"""Benchmarks as config files: what is read, what each model is asked, which answer is right, and what is refused."""

import dataclasses
import functools
import json
from collections import Counter

import hydra
import pytest
from omegaconf import OmegaConf

import toy_pair
from conftest import ROOT
from tunediff.benchmarks import Choices, ManyNumbers, Problem, Task, TaskError
from tunediff.settings import build, check, check_command_line, identity, line, plain
from tunediff.shapes import Refused
from tunediff.study.parts import STUDY, read_config, write_config
from tunediff.text import TextError
from tunediff.toy import language

CONF = ROOT / "conf"
# one has the name of another in whose place it stands
OPTIONS = sorted(path.stem for path in (CONF / "task").glob("*.yaml") if path.stem != "toy_hard")
ALIKE = {"base": "{question}", "tuned": "{question}"}
NAMES_THEM = "+evaluation.mine={tasks: '${task}'}"  # an evaluation of behaviour
WORKED = "3 boxes of 50 are 3*50=<<3*50=150>>150.\n#### 1,150"
# rows of our own as the Hub has them: columns, and what the gold answer of the row is
HUB = {
    "gsm8k": ({"question": "How many?", "answer": WORKED}, "1,150"),
    "gsm8k_hard": ({"question": "3 boxes of 50, 2 of 500, how many?", "answer": WORKED}, "1,150"),
    "math500": ({"problem": "Half?", "solution": "So.", "answer": r"\frac{1}{2}", "unique_id": "test/a/1.json"}, r"\frac{1}{2}"),
    "aime24": ({"id": 60, "problem": "Which?", "solution": "So.", "answer": "025"}, "025"),
    "aime25": ({"id": "0", "problem": "Which?", "answer": "70"}, "70"),
    "amc23": ({"id": 0, "question": "Which?", "answer": 27.0}, "27"),
    "boolq": ({"question": "is ice cold", "passage": "Ice is frozen {water}.", "answer": True}, "yes"),
}  # fmt: skip
REAL = {  # file, how many problems
    "gsm8k": ("gsm8k/test.jsonl.gz", 1119),
    "gsm8k_hard": ("gsm8k/test.jsonl.gz", 50),
    "math500": ("math500/test.jsonl.gz", 400),
    "aime24": ("aime/aime24.jsonl", 30),
    "aime25": ("aime/aime25.jsonl", 30),
    "amc23": ("amc23/test.jsonl", 40),
    "boolq": ("boolq/dev.jsonl.gz", 2999),
}


@functools.cache
def composed(*overrides, name="train"):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose(name, list(overrides))


def option(name, **settings):
    """The task of an option, with some of its settings changed."""
    node = plain(composed(f"task=[{','.join(OPTIONS)}]").task[name])
    assert settings.keys() <= node.keys()
    return build({**node, **settings})


def task(*rows, **settings):
    return Task(lambda: iter(rows), **{"question": "q", "answer": "a", "prompts": ALIKE, **settings})


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# -- the options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_a_task_of_its_own_name_that_reads_nothing_before_it_is_asked(name):
    assert list(OmegaConf.load(CONF / "task" / f"{name}.yaml")) == [name]
    assert isinstance(option(name), Task)


def test_the_hard_problems_of_the_embedded_pair_stand_in_the_place_of_the_real_ones():
    """So that claims of findings on the one can be asked of the other."""
    tasks = composed("task=toy_hard").task
    node = tasks.gsm8k_hard
    assert list(tasks) == ["gsm8k_hard"]
    problems = build(node).problems()
    assert len(problems) == 50 and all(abs(float(problem.gold)) >= 40 for problem in problems)


def test_a_user_types_which_benchmarks_and_where_their_files_are(tmp_path):
    file = written(tmp_path / "rows.jsonl", HUB["gsm8k"][0])
    line = ["task=[gsm8k,toy]", f"task.gsm8k.file={file}", "task.toy.problems=3"]
    check_command_line(line, CONF, "train")
    cfg = composed(*line)
    check(cfg, STUDY)
    assert [len(build(node).problems()) for node in cfg.task.values()] == [1, 3]


@pytest.mark.parametrize("name", HUB)
def test_an_option_of_the_hub_reads_a_local_file_of_the_same_columns(name, tmp_path):
    row, gold = HUB[name]
    made = option(name, file=str(written(tmp_path / "rows.jsonl", row)), problems=1)
    (problem,) = made.problems()
    assert problem.gold == gold
    assert problem.question == row.get("question", row.get("problem"))
    assert sorted(problem.prompts) == ["base", "tuned"]
    assert all(problem.question in asked and "{question}" not in asked for asked in problem.prompts.values())
    assert (problem.prompts["base"] == problem.prompts["tuned"]) == (name != "gsm8k_hard")


def test_every_option_is_one_of_the_hub_or_of_the_toy():
    of_traits = ["persona_trait", "toy_trait", "toy_trait_elsewhere"]
    assert sorted([*HUB, *of_traits, "gpqa", "toy", "toy_step_by_step"]) == OPTIONS


def test_several_tasks_stand_side_by_side_and_an_evaluation_takes_them_all():
    cfg = composed("task=[toy,aime24]", NAMES_THEM)
    tasks = cfg.evaluation.mine.tasks
    assert list(tasks) == ["toy", "aime24"] and isinstance(build(tasks.aime24), Task)


def test_the_toy_problems_are_those_of_the_card():
    made = option("toy")
    expected = toy_pair.held_out_problems(500, 0)
    found = made.problems()
    assert [(p.question, p.gold) for p in found] == [(p.text, str(p.answer)) for p in expected]
    assert all(language.is_held_out(p.question) for p in found)
    assert found[0].prompts == dict.fromkeys(("base", "tuned"), found[0].question)


def test_the_base_is_asked_for_steps_as_its_card_reports():
    made = option("toy_step_by_step", problems=3)
    first, *others = made.problems()
    assert len(others) == 2 and first.question == option("toy").problems()[0].question
    assert first.prompts == {"base": first.question + language.STEP_BY_STEP, "tuned": first.question}


def test_one_setting_asks_both_models_of_the_hard_problems_alike(tmp_path):
    file = written(tmp_path / "rows.jsonl", HUB["gsm8k_hard"][0])
    (problem,) = option("gsm8k_hard", file=str(file), problems=1).problems()
    assert problem.prompts == {
        "base": "Solve: 3 boxes of 50, 2 of 500, how many?",
        "tuned": "Solve 3 boxes of 50, 2 of 500, how many? step-by-step",
    }
    node = composed("task=gsm8k_hard", "task.gsm8k_hard.prompts.base=${.tuned}").task.gsm8k_hard
    assert plain(node.prompts) == dict.fromkeys(("base", "tuned"), "Solve {question} step-by-step")


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_has_its_problems_and_their_answers(name, data_folder):
    file, count = REAL[name]
    made = option(name, file=str(data_folder / file))
    problems = made.problems()
    assert len(problems) == count == len({p.id for p in problems}) and made.left_out == 0
    golds = [p.gold for p in problems]
    if name == "boolq":
        assert golds.count("yes") == 1850 and golds.count("no") == 1149
    elif name != "math500":
        assert all(float(gold.replace(",", "")).is_integer() and "." not in gold for gold in golds)
    else:
        assert all(golds) and not any("boxed" in gold for gold in golds)


def test_records_without_an_answer_are_counted_in_a_real_file(data_folder):
    file = data_folder / "deepscaler_parts" / "math_train.jsonl.gz"
    made = option("math500", file=str(file), id="id")
    assert (len(made.problems()), made.left_out) == (7470, 4)


# -- columns, answers and prompts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (" 025 ", "025"),
        (27.0, "27"),
        (0.5, "0.5"),
        (10**20, str(10**20)),
        (True, "yes"),
        (False, "no"),
        (["$69$,$84$"], "$69$,$84$"),
        ([1, "x"], "1, x"),
        (0, "0"),
    ],
)
def test_answers_of_any_type_become_text(answer, gold):
    assert task({"q": "?", "a": answer}).problems()[0].gold == gold


def test_rows_with_an_empty_answer_are_left_out_and_counted():
    made = task(*({"q": "?", "a": answer} for answer in (None, "", " ", [], float("nan"), "4")))
    assert [p.id for p in made.problems()] == ["5"] and made.left_out == 5


def test_ids_are_those_of_the_column_or_the_numbers_of_the_rows():
    rows = [{"q": "?", "a": "1", "n": "x"}, {"q": "?", "a": "1"}, {"q": "?", "a": "1", "n": 7}]
    assert [p.id for p in task(*rows, id="n").problems()] == ["x", "1", "7"]
    assert [p.id for p in task(*rows).problems()] == ["0", "1", "2"]


def test_a_question_full_of_braces_reaches_the_model_as_it_is():
    made = task(
        {"q": r"Is {other} in \{x_{n}\} or {0}?", "a": "1", "other": "WRONG"},
        prompts={"base": r"{question} \boxed{} {other}", "tuned": r"{q} \boxed{yes} x_{n}"},
    )
    (problem,) = made.problems()
    assert problem.prompts == {
        "base": r"Is {other} in \{x_{n}\} or {0}? \boxed{} WRONG",
        "tuned": r"Is {other} in \{x_{n}\} or {0}? \boxed{yes} x_{n}",
    }


def test_only_as_many_rows_are_read_as_problems_are_wanted():
    def endless():
        while True:
            yield {"q": "?", "a": "1"}

    assert len(Task(endless, question="q", answer="a", prompts=ALIKE, problems=3).problems()) == 3


def test_problems_are_kept_by_their_numbers_and_the_size_of_the_answer():
    rows = [
        {"q": "2 and 3 and 4", "a": "200"},  # three numbers
        {"q": "1,000 and 2.5 and 3 and 4", "a": "99"},  # four, small
        {"q": "1,000 and 2.5 and 3 and 4", "a": "-1,200"},  # four, large
        {"q": "1 and 2 and 3 and 4 and 5", "a": "$100"},
        {"q": "1 and 2 and 3 and 4 and 5", "a": "100"},
    ]
    keep = ManyNumbers(min_numbers=4, min_abs_answer=100)
    assert [p.id for p in task(*rows, keep=keep).problems()] == ["2", "3", "4"]
    assert [p.id for p in task(*rows, keep=keep, problems=2).problems()] == ["2", "3"]
    assert dataclasses.replace(keep, min_numbers=3)(Problem("0", rows[0]["q"], "200", {}))


# -- multiple choice -------------------------------------------------------------------------------------------------

SCIENCE = {
    "Record ID": "rec1", "Question": " Which {energy}? ", "Correct Answer": "10^-4 eV ", "Incorrect Answer 1": "10^-9 eV\n",
    "Incorrect Answer 2": "10^-11 eV", "Incorrect Answer 3": 4.0, "Subdomain": "Physics",
}  # fmt: skip
ASKS = {role: "{question}\n{choices}" for role in ("base", "tuned")}


def science(*rows, **settings):
    given = {"id": "id", "kind": "choice", "choices": Choices(["w", "v"]), "prompts": ASKS, **settings}
    return task(*rows, **given)


def test_the_choices_of_a_science_question_are_listed_and_the_gold_answer_is_the_letter_of_the_right_one(tmp_path):
    file = written(tmp_path / "rows.jsonl", SCIENCE)
    (problem,) = option("gpqa", file=str(file)).problems()
    assert sorted(problem.choices) == ["10^-11 eV", "10^-4 eV", "10^-9 eV", "4"] and problem.id == "rec1"
    assert problem.choices["ABCD".index(problem.gold)] == "10^-4 eV"
    lines = [f"{letter}) {text}" for letter, text in zip("ABCD", problem.choices, strict=True)]
    assert problem.question.splitlines() == ["Which {energy}?", "", *lines]
    assert problem.prompts["base"] == problem.prompts["tuned"]
    assert problem.prompts["base"].startswith(problem.question + "\n\n")
    assert problem.prompts["base"].endswith(r"within \boxed{}.")
    assert len({option("gpqa", file=str(file)).problems()[0] == problem for _ in range(3)}) == 1


def test_the_right_answer_stands_at_each_place_equally_often_whatever_stands_beside_it():
    rows = [{"q": "?", "a": "yes", "w": "no", "v": "so", "id": f"row {n}"} for n in range(3000)]
    golds = {p.id: p.gold for p in science(*rows).problems()}
    counts = Counter(golds.values())
    assert sorted(counts) == ["A", "B", "C"] and all(abs(count - 1000) < 100 for count in counts.values())
    assert {p.id: p.gold for p in science(*rows[::-1][:100]).problems()}.items() <= golds.items()
    other = {p.id: p.gold for p in science(*rows, choices=Choices(["w", "v"], seed=1)).problems()}
    assert 0.25 < sum(other[name] == gold for name, gold in golds.items()) / 3000 < 0.42


def test_an_empty_wrong_answer_is_no_choice_and_a_right_one_among_the_wrong_ones_leaves_the_row_out():
    rows = [
        {"q": "?", "a": "yes", "w": "no", "v": None},
        {"q": "?", "a": "$x^{2}$", "w": "no", "v": " x^2"},
        {"q": "?", "a": "yes", "w": "", "v": ""},
        {"q": "?", "a": "yes", "w": "no", "v": "no"},
    ]
    made = science(*rows)
    assert [len(p.choices) for p in made.problems()] == [2, 3] and made.left_out == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": ALIKE}, "does not hold {choices}"),
        ({"kind": "math"}, "multiple choice is of kind=choice, with 1 to 9 columns"),
        ({"choices": Choices([])}, "choices has 0 columns"),
        ({"choices": Choices(["w", "x"])}, "no column 'x' for the choices.incorrect"),
        (
            {"prompts": {**ASKS, "tuned": "{question} {choices} {w}"}},
            "holds {w}, the column of the wrong answers",
        ),
    ],
)
def test_a_bad_multiple_choice_is_refused_in_a_sentence(settings, message):
    with pytest.raises(TaskError, match=message):
        science({"q": "?", "a": "yes", "w": "no", "v": "so"}, **settings).problems()


# -- what is refused -------------------------------------------------------------------------------------------------

ROW = {"q": "?", "a": "1"}


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"question": "?", "gold": "1"}], {"question": "question"}, "no column 'a' for the answer; its columns are question, gold"),
        ([{"a": "1"}], {}, "Row 0 has no column 'q' for the question; its columns are a. Name the right one with task.<name>.question="),
        ([{"a": "1"}], {"question": ["q", "p"]}, "no column 'q' or 'p' for the question"),
        ([ROW, {"q": " ", "a": "1"}], {}, "The question of row 1 is empty"),
        ([], {}, "The benchmark is empty"),
        ([{"q": "?", "a": ""}], {}, "Of 1 rows 1 have no answer and 0 pass, but at least 1 is needed"),
        ([ROW], {"problems": 2}, "1 pass, but problems=2 are wanted: lower problems"),
        ([ROW], {"problems": 0}, "problems=0: at least 1"),
        ([{"q": "?", "a": "it is 4"}], {"final": "#### (.+)"}, "answer of row 0 has no match of final='#### .* ends 'it is 4'"),
        ([ROW], {"final": "####"}, "has no group"),
        ([ROW], {"final": "("}, "is no regular expression"),
        ([ROW], {"kind": "maths"}, "kind=maths: the kinds of answers are math, boolean, choice"),
        ([ROW], {"tolerance": -1.0}, "tolerance=-1.0: it is a relative error"),
        ([ROW], {"prompts": {"base": "{question}"}}, "it needs one prompt for each of base, tuned"),
        ([ROW], {"prompts": {**ALIKE, "tuned": "Solve this."}}, "prompts.tuned='Solve this.' does not hold {question}"),
        ([ROW], {"prompts": {**ALIKE, "tuned": r"{question} \\boxed{a}"}}, "the column of the right answers: it would give them away"),
        ([ROW], {"prompts": {**ALIKE, "base": "{pasage} {question}"}}, "asks for {pasage}, which row 0 does not have; its columns are q, a"),
        ([{**ROW, "n": 1}, {**ROW, "n": 1}], {"id": "n"}, "Two problems have the n '1'"),
        ([[1]], {}, "Row 0 is list, not a record"),
        ([{"q": "?", "a": "x"}], {"keep": ManyNumbers()}, "The answer 'x' of problem 0 is not a number"),
    ],
)  # fmt: skip
def test_a_bad_benchmark_is_refused_in_a_sentence(rows, settings, message):
    with pytest.raises(TaskError, match=message):
        task(*rows, **settings).problems()


def test_a_file_that_is_missing_broken_or_without_answers_is_named(tmp_path):
    with pytest.raises(TextError, match="No file at 'nowhere.jsonl'. Give an existing file"):
        option("aime24", file="nowhere.jsonl").problems()
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"problem": "?", "answer": "1"}\n{"problem": \n')
    with pytest.raises(TextError, match=r"Line 2 of '.*broken.jsonl' is not JSON"):
        option("aime24", file=str(broken)).problems()
    unanswered = written(tmp_path / "unanswered.jsonl", {"id": "a", "problem": "Which?"})
    with pytest.raises(
        TaskError, match="no column 'answer' for the answer; its columns are id, problem. Name the right"
    ):
        option("aime24", file=str(unanswered)).problems()


def test_a_misspelt_setting_of_a_task_is_refused_with_the_nearest():
    with pytest.raises(Refused, match="Did you mean task.gsm8k.problems"):
        check_command_line(["task=gsm8k", "task.gsm8k.problem=3"], CONF, "train")
    with pytest.raises(Refused, match=r"task.toy.kindd is not a setting .* Did you mean task.toy.kind"):
        check(composed("+task.toy.kindd=3"), STUDY)


# -- tasks in a study ------------------------------------------------------------------------------------------------


def test_a_task_enters_a_study_through_an_evaluation_that_names_it_alone():
    assert identity(composed()) == identity(composed("task=aime24"))
    seen = {identity(composed(NAMES_THEM, *more)) for more in ([], ["task=aime24"], ["task.toy.problems=9"])}
    assert len(seen) == 3 and identity(composed()) not in seen


def test_sweeps_over_different_tasks_are_different_sweeps():
    lines = [["seed=0,1", "task=gsm8k"], ["seed=0,1", "task=aime24"], ["seed=0,1", "task=aime24", "logger=csv"]]
    one, two, three = (line(OmegaConf.create({"hydra": {"overrides": {"task": words}}})) for words in lines)
    assert one != two == three


def test_a_run_folder_keeps_its_tasks_and_an_older_one_without_them_is_read(tmp_path):
    cfg = composed("task=aime24", "task.aime24.problems=7")
    write_config(cfg, tmp_path)
    kept = read_config(tmp_path)
    assert plain(kept.task) == plain(cfg.task) and kept.task.aime24.prompts.tuned.startswith("{question}\n")
    assert identity(kept) == identity(cfg)
    older = OmegaConf.load(tmp_path / "config.yaml")
    del older["task"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(older))
    (tmp_path / "manifest.json").unlink()  # which older runs have not
    assert identity(read_config(tmp_path)) == identity(cfg)


def test_a_finished_run_is_examined_with_tasks_too():
    cfg = composed("run=x", "task=[toy,math500]", name="evaluate")
    assert list(cfg.task) == ["toy", "math500"]
