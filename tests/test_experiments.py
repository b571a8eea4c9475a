"""Experiments with published claims: each begins with the lines that run it, each line composes, and RESULTS.md tells the claims
that stand in the files."""

import re
import sys

import hydra
import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))

from at_full_size import composed
from reproduce import EARLIER, PAGE, claimed, families, lines_of
from tunediff.settings import check
from tunediff.study.finetune import FINE_TUNE
from tunediff.study.parts import STUDY

FAMILIES = families()


@pytest.mark.parametrize("name", FAMILIES)
def test_an_experiment_has_lines_of_each_scale_that_name_it(name):
    lines = lines_of(FAMILIES[name])
    assert {line.scale for line in lines} >= {"toy", "smoke", "paper"}, [line.words for line in lines]
    assert all(f"experiment={name}" in line.words for line in lines if line.verb == "train.py" and line.scale == "toy")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_toy_lines_of_an_experiment_are_settings(name):
    before = {"train.py": STUDY, "finetune.py": FINE_TUNE}
    for line in lines_of(FAMILIES[name]):
        if line.scale == "toy" and line.verb in before and not any(EARLIER in word for word in line.words):
            cfg, _ = composed(line.verb.partition(".")[0], [word for word in line.words[2:] if word != "-m"])
            check(cfg, before[line.verb])
            assert cfg.claims, line.words


@pytest.mark.parametrize("name", FAMILIES)
def test_a_claim_says_who_said_so_and_where_it_is_asked(name):
    for claim in claimed(FAMILIES[name]).values():
        known = re.search(r"\d{4}", claim.source) or claim.trust in ("code", "second_hand", "field")
        assert known, f"{claim.says}: its source has neither a year nor a number"
        assert not claim.only or claim.elsewhere, f"{claim.says}: it does not say why it is asked of no others"


def test_every_claim_has_its_verdict_in_the_results():
    """A claim that was changed behind its measurement has none: make reproduce."""
    text = PAGE.read_text(encoding="utf-8")
    told = set(re.findall(r"\b(\w+):([0-9a-f]{12})\b", text))
    asked = {(key, claim.digest) for path in FAMILIES.values() for key, claim in claimed(path).items()}
    assert asked <= told, sorted(asked - told)


def test_every_seed_has_an_experiment():
    sources = " ".join(claim.source for path in FAMILIES.values() for claim in claimed(path).values())
    for number in ("2511.06739", "2602.20904", "2604.16423", "2507.12638"):
        assert number in sources, number


def test_the_words_of_a_line_are_told_from_its_remark(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(
        "# @package _global_\n# Choose it for x.\n#\n"
        "#   python train.py -m experiment=one scale=toy layer=0,1        20 s\n"
        "#   python finetune.py recipe=plain        toy: 10 s\n"
        "#   python train.py experiment=one\n\n# python train.py below=1\n"
    )
    lines = lines_of(path)
    assert [(line.scale, line.verb, line.sweeps) for line in lines] == [
        ("toy", "train.py", True),
        ("toy", "finetune.py", False),
        ("paper", "train.py", False),
    ]
    assert lines[0].placed(tmp_path / "1", None)[-1] == f"hydra.sweep.dir={tmp_path / '1'}"


def test_the_first_of_what_is_swept_stands_for_a_line():
    from at_full_size import first_of

    assert first_of(["layer=1,2", "seed=0,1,2", "a=[1,2]"]) == (["layer=1", "seed=0", "a=[1,2]"], 6)
    with pytest.raises(hydra.errors.HydraException):
        first_of(["layer"])
