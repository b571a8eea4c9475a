"""Every draw has a stream of its own: nothing that is drawn for one purpose can stand in another."""

import ast
import re

import pytest
import torch
from hydra import compose, initialize_config_dir

from conftest import ROOT
from tunediff import randomness
from tunediff.activations import Planted, PlantedRows
from tunediff.evaluations import score
from tunediff.study.parts import build_dictionary

GIVERS = {"generator", "numpy_generator", "chance", "seed_for"}
DRAWS = {"rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal"}


def trees():
    """Every file of the package and its benchmarks, and each block of Python in the README."""
    for folder in ("src", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name != "randomness.py":
                yield path.name, ast.parse(path.read_text())
    for n, block in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)):
        yield f"README block {n}", ast.parse(block)


def calls(tree):
    """Each call with the last name of what is called, such as manual_seed of torch.Generator().manual_seed(0)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield name, node


def purposes():
    """The purpose of each generator that is asked for, and where."""
    for where, tree in trees():
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "tunediff.randomness"
            for alias in node.names
        }
        for _, node in calls(tree):
            if ast.unparse(node.func) in {f"randomness.{giver}" for giver in GIVERS} | imported:
                yield where, node.args[1]


def test_no_seed_is_used_as_it_is():
    for where, tree in trees():
        for name, node in calls(tree):
            assert name not in ("default_rng", "RandomState", "Random", "seed_everything"), (
                f"{where}: {ast.unparse(node)}"
            )
            if name == "manual_seed":
                assert ast.unparse(node.args[0]).startswith("randomness.seed_for("), f"{where}: {ast.unparse(node)}"


def test_what_torch_draws_it_draws_from_a_generator_that_is_named():
    for where, tree in trees():
        for name, node in calls(tree):
            if name in DRAWS and ast.unparse(node.func).startswith("torch."):
                assert "generator" in {keyword.arg for keyword in node.keywords}, f"{where}: {ast.unparse(node)}"


def test_no_two_places_draw_for_the_same_purpose():
    found = [(where, purpose) for where, purpose in purposes()]
    words = [purpose.value for _, purpose in found if isinstance(purpose, ast.Constant)]
    assert len(words) > 40 and len(set(words)) == len(words), sorted(word for word in words if words.count(word) > 1)
    # the toy language draws the rows of each kind for the kind
    assert [(where, ast.unparse(one)) for where, one in found if not isinstance(one, ast.Constant)] == [
        ("language.py", "kind")
    ]


def test_no_two_draws_of_the_project_have_equal_seeds():
    """Of torch's generator on the CPU, which takes 32 bits, over every pair of purposes and of a hundred seeds."""
    words = {purpose.value for _, purpose in purposes() if isinstance(purpose, ast.Constant)}
    seeds = {randomness.seed_for(seed, word) % 2**32 for word in words for seed in range(100)}
    assert len(seeds) == 100 * len(words)
    assert randomness.seed_for(1, "a", 23) != randomness.seed_for(1, "a", 2, 3) != randomness.seed_for(12, "a", 3)


def test_a_seed_beyond_32_bits_is_a_seed_of_its_own():
    """Where torch on the CPU takes it as it is, seed and seed + 2 ** 32 are one."""
    far, near = (torch.rand(3, generator=randomness.generator(n, "a test")) for n in (2**32, 0))
    assert not torch.equal(far, near)
    assert torch.equal(near, torch.rand(3, generator=randomness.generator(0, "a test")))


def dictionaries():
    return sorted(
        path.stem for path in (ROOT / "conf" / "dictionary").glob("*.yaml") if path.stem != "transcoder_adapter"
    )


def untrained(option, seed):
    """An option as the study with this seed starts it, the pair planted with the same seed, and the streams that it reads."""
    planted = Planted(seed=seed)
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = compose("train", [f"dictionary={option}", "budget.latents=256", f"seed={seed}"])
    both = planted.streams
    streams = both if cfg.dictionary.reads == "both" else [both[1]._replace(role=cfg.dictionary.reads)]
    return build_dictionary(cfg.dictionary, streams), planted, cfg.dictionary.get("shared_start", True)


def cosines(option, seed):
    """Mean largest cosine with what was planted, of the untrained option and of random rows that lie as its own do."""
    dictionary, planted, shared = untrained(option, seed)
    rows = next(PlantedRows(planted, dictionary.streams, seed=seed))
    dictionary.fit(rows)
    found = score(dictionary, planted, [rows]).mean_max_cosine
    apart = torch.Generator().manual_seed(10_000 + seed)
    draws = [torch.randn(dictionary.latents, 64, generator=apart) for _ in dictionary.streams]
    unit = [torch.nn.functional.normalize(draw, dim=-1) for draw in (draws[:1] * len(draws) if shared else draws)]
    with torch.no_grad():
        dictionary.W_dec.copy_(torch.cat(unit, dim=-1) * (dictionary.W_dec != 0))
    return found, score(dictionary, planted, [rows]).mean_max_cosine


@pytest.mark.parametrize("option", dictionaries())
def test_an_untrained_dictionary_knows_no_more_of_the_truth_than_random_rows_do(option):
    for seed in range(3):
        found, random = cosines(option, seed)
        assert abs(found - random) < 0.02


def test_that_law_sees_a_stream_that_two_purposes_share(monkeypatch):
    monkeypatch.setattr(randomness, "generator", lambda seed, *_: torch.Generator().manual_seed(seed))
    found, random = cosines("sae", 3)  # its one model's directions are drawn first, as its rows are
    assert found > 0.8 > 0.4 > random
