"""Planted truth: what is planted is there, what is right scores full marks, and each artefact is seen for what it is."""

import os
import subprocess
import sys
from functools import partial

import numpy
import pytest
import torch

import warm
from conftest import ROOT
from tunediff.activations import Planted, PlantedRows
from tunediff.dictionary import Crosscoder, Linear, Normalisation
from tunediff.evaluations import latent_scaling, score
from tunediff.shapes import BASE, TUNED, Refused

W = 256  # wide, so that directions drawn at random hardly overlap
FEW = {"shared": 8, "base_only": 3, "tuned_only": 3, "rotated": 2, "shrunken": 2, "split": 2}


def planted(**settings):
    return Planted(**{"width": W, "counts": FEW, "noise": 0.01, **settings})


def rows(truth, blocks=4, seed=0):
    source = PlantedRows(truth, truth.streams, seed=seed)
    return [next(source) for _ in range(blocks)]


def known(truth):
    """The dictionary that has every event as a latent, and reads it off exactly."""
    written = truth.written(truth.streams)
    written = written[[n for n, k in enumerate(truth.kinds) if k != "split"]]
    made = Crosscoder(
        truth.streams,
        latents=len(written),
        sparsity=Linear(0.0),
        normalisation=partial(Normalisation, kind="none", sink_multiple=None),
    )
    with torch.no_grad():
        made.W_dec.copy_(written)
        made.W_enc.copy_(torch.linalg.pinv(written))
        made.b_dec.copy_(truth.center.flatten())
        made.b_enc.copy_(-truth.center.flatten() @ made.W_enc)
    return made


def test_what_is_planted_is_what_its_kind_says():
    truth = Planted()
    kind = {name: torch.tensor([k == name for k in truth.kinds]) for name in set(truth.kinds)}
    cosine = torch.nn.functional.cosine_similarity(truth.base, truth.tuned)
    for name, expected in (("shared", 1.0), ("dense", 1.0), ("shrunken", 1.0), ("rotated", 0.5)):
        assert torch.allclose(cosine[kind[name]], torch.tensor(expected), atol=1e-5)
    assert torch.allclose(truth.base[kind["shrunken"]].norm(dim=-1), torch.tensor(0.3))
    assert torch.equal(truth.exclusive(BASE), kind["base_only"])
    assert torch.equal(truth.exclusive(TUNED), kind["tuned_only"] | kind["rare"])
    first, second = truth.tuned[kind["split"]][::2], truth.tuned[kind["split"]][1::2]
    assert torch.equal(first, second)
    apart = torch.nn.functional.cosine_similarity(truth.base[kind["split"]][::2], truth.base[kind["split"]][1::2])
    assert (apart < 0.9).all() and (apart > 0.2).all()
    with pytest.raises(Refused, match="the kinds are shared, base_only"):
        Planted(counts={"strange": 3})


def test_events_fire_as_often_as_their_rates_and_together_within_a_topic():
    truth = planted(counts={"shared": 30, "dense": 2, "rare": 2}, correlation=0.5)
    made = known(truth)
    values = torch.cat([block.values for block in rows(truth, blocks=20)])
    fires = ((values - truth.center.flatten()) @ made.W_enc.detach() > 0.25).float()
    assert torch.allclose(fires.mean(0), truth.rates, rtol=0.15, atol=1e-3)
    correlation = torch.corrcoef(fires.T)
    same = (truth.topic[:, None] == truth.topic) & ~torch.eye(34, dtype=torch.bool)
    assert correlation[same].mean() > 0.1 > correlation[truth.topic[:, None] != truth.topic].mean().abs() + 0.05


def test_the_source_goes_on_from_its_position_and_gives_the_difference():
    truth = planted()
    first = PlantedRows(truth, truth.streams, seed=3)
    next(first)
    second = PlantedRows(truth, truth.streams)
    second.load_state_dict(first.state_dict())
    values = next(first).values
    assert torch.equal(values, next(second).values)
    difference = PlantedRows(truth, [truth.streams[1]._replace(role="difference")], seed=3)
    next(difference)
    assert torch.allclose(next(difference).values, values[:, W:] - values[:, :W])


def test_the_truth_itself_scores_full_marks():
    truth = planted()
    found = score(known(truth), truth, rows(truth))
    assert found.by_norm == found.scaled and found.by_norm.called == 6 and found.by_norm.false == 0
    assert found.by_norm.precision == found.by_norm.recall == 1.0 and found.dead == 0
    assert found.mean_max_cosine > 16 / 18  # all but the two split events, which it does not have


def scaled(dictionary, blocks):
    return latent_scaling(dictionary, ((block, dictionary.encode(block)) for block in blocks))


def test_latent_scaling_unmasks_complete_shrinkage():
    """A shared event whose base decoder was dropped looks tuned-only; the base's error still holds it."""
    truth = planted()
    made = known(truth)
    with torch.no_grad():
        made.W_dec[0, :W] = 0
    found = score(made, truth, rows(truth))
    assert (found.by_norm.called, found.by_norm.false) == (7, 1)
    assert (found.scaled.called, found.scaled.false, found.scaled.recall) == (6, 0, 1.0)
    scaling = scaled(made, rows(truth))[TUNED]
    assert abs(scaling.nu("error")[0] - 1) < 0.05 and scaling.nu("reconstruction")[0] < 0.3
    exclusive = [n for n, k in enumerate(k for k in truth.kinds if k != "split") if k == "tuned_only"]
    assert (scaling.nu("error")[exclusive].abs() < 0.1).all() and (
        scaling.nu("reconstruction")[exclusive].abs() < 0.3
    ).all()


def test_latent_scaling_unmasks_latent_decoupling():
    """A shared event that two latents write, one into each model."""
    truth = planted()
    known_one = known(truth)
    made = Crosscoder(
        truth.streams,
        latents=known_one.latents + 1,
        sparsity=Linear(0.0),
        normalisation=partial(Normalisation, kind="none", sink_multiple=None),
    )
    with torch.no_grad():
        made.W_enc.copy_(torch.cat([known_one.W_enc, known_one.W_enc[:, :1]], dim=1))
        made.b_enc.copy_(torch.cat([known_one.b_enc, known_one.b_enc[:1]]))
        made.W_dec.copy_(torch.cat([known_one.W_dec, known_one.W_dec[:1]]))
        made.b_dec.copy_(known_one.b_dec)
        made.W_dec[0, :W] = 0
        made.W_dec[-1, W:] = 0
    found = score(made, truth, rows(truth))
    assert (found.by_norm.called, found.by_norm.false) == (8, 2) and (found.scaled.called, found.scaled.false) == (6, 0)
    scaling = scaled(made, rows(truth))
    for role, latent in ((TUNED, 0), (BASE, -1)):
        assert abs(scaling[role].nu("reconstruction")[latent] - 1) < 0.15


def test_scaling_is_the_least_squares_fit_and_does_not_depend_on_batching():
    truth = planted()
    made, blocks = known(truth), rows(truth, blocks=2)
    with torch.no_grad():
        made.W_dec.mul_(0.8)
        made.W_dec[0, :W] *= 0.3
        x = torch.cat([block.values for block in blocks]).double()
        f, restored = (
            part.double()
            for part in (
                made.encode(type(blocks[0])(x.float())),
                made.reconstruct(made.encode(type(blocks[0])(x.float()))),
            )
        )
        d = made.W_dec[0, W:].double()

        def beta(target):
            return (f[:, 0] * (target @ d)).sum() / (d.square().sum() * f[:, 0].square().sum())

        betas = {}
        for role, columns in ((BASE, slice(0, W)), (TUNED, slice(W, 2 * W))):
            own = f[:, :1] * made.W_dec[0, columns].double()
            betas[role] = beta(x[:, columns] - (restored[:, columns] - own)), beta(restored[:, columns])
    scaling = scaled(made, blocks)[TUNED]
    assert torch.allclose(scaling.nu("error")[0].double(), betas[BASE][0] / betas[TUNED][0], rtol=1e-3)
    assert torch.allclose(scaling.nu("reconstruction")[0].double(), betas[BASE][1] / betas[TUNED][1], rtol=1e-3)
    halves = [type(b)(part) for b in blocks for part in b.values.split(1000)]
    again = scaled(made, halves)[TUNED]
    assert torch.allclose(again.nu("error"), scaling.nu("error"), rtol=1e-3, atol=1e-4, equal_nan=True)


def test_one_beta_is_a_librarys_least_squares_solution():
    truth = planted()
    made, blocks = known(truth), rows(truth, blocks=2)
    with torch.no_grad():
        made.W_dec.mul_(0.8)
        values = torch.cat([block.values for block in blocks])
        latents = made.encode(type(blocks[0])(values))
        restored = made.reconstruct(latents)
        column, own = latents[:, 0].double(), slice(W, 2 * W)
        design = torch.outer(column, made.W_dec[0, own].double()).flatten()[:, None].numpy()
        targets = {
            "activation": values[:, own],
            "error": values[:, own] - restored[:, own] + torch.outer(latents[:, 0], made.W_dec[0, own]),
            "reconstruction": restored[:, own],
        }
    beta = scaled(made, blocks)[TUNED].beta
    for target, y in targets.items():
        expected = numpy.linalg.lstsq(design, y.double().flatten().numpy(), rcond=None)[0][0]
        assert abs(float(beta[target, TUNED][0]) - expected) < 1e-6 * abs(expected) + 1e-6, target


def test_latent_scaling_tells_both_artefacts_from_what_is_exclusive():
    """32 really exclusive latents against 32 of complete shrinkage and 32 of latent decoupling, with noise."""
    counts = {"shared": 48, "tuned_only": 32}
    truth = planted(counts=counts, noise=0.05)
    right, shrunken, decoupled = known(truth), range(16), range(16, 32)
    extra = len(decoupled)
    made = Crosscoder(
        truth.streams,
        latents=right.latents + extra,
        sparsity=Linear(0.0),
        normalisation=partial(Normalisation, kind="none", sink_multiple=None),
    )
    with torch.no_grad():
        some = list(decoupled)
        made.W_enc.copy_(torch.cat([right.W_enc, right.W_enc[:, some]], dim=1))
        made.b_enc.copy_(torch.cat([right.b_enc, right.b_enc[some]]))
        made.W_dec.copy_(torch.cat([right.W_dec, right.W_dec[some]]))
        made.b_dec.copy_(right.b_dec)
        made.W_dec[[*shrunken, *decoupled], :W] = 0  # they look tuned-only
        made.W_dec[right.latents :, W:] = 0  # the other halves of the decoupled ones look base-only
    scaling = scaled(made, rows(truth, blocks=8))
    artefacts = [*scaling[TUNED].exclusive()[[*shrunken, *decoupled]], *scaling[BASE].exclusive()[right.latents :]]
    genuine = scaling[TUNED].exclusive()[48:80]
    answers = [not bool(held) for held in artefacts] + genuine.tolist()
    assert len(answers) == 80 and sum(answers) / len(answers) >= 0.95


def test_names_are_not_swapped_a_planted_tuned_only_event_is_never_called_base_only():
    truth = planted(counts={"shared": 8, "tuned_only": 4})
    found = score(known(truth), truth, rows(truth))
    assert found.by_norm.called == 4 and found.by_norm.false == 0
    swapped = known(truth)
    with torch.no_grad():
        base, tuned = swapped.W_dec.clone().split(W, dim=-1)
        swapped.W_dec.copy_(torch.cat([tuned, base], dim=-1))
    assert score(swapped, truth, rows(truth)).by_norm.false == 4


def test_the_benchmark_trains_options_of_conf_on_planted_pairs_and_prints_their_scores(tmp_path):
    kinds, file = ["batchtopk_crosscoder", "l1_crosscoder", "difference_sae"], tmp_path / "scores.jsonl"

    def bench(*words):
        command = [warm.python(), "bench/planted.py", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    words = ["--to", file, "--pairs", "0", "--tokens", "20_480", "--options", *kinds]
    bench(*map(str, words))
    lines = file.read_text().splitlines()
    # three options, three controls of the first, each option untrained, principal components
    assert len(lines) == 3 + 3 + 3 + 1
    bench(*map(str, words))
    assert file.read_text().splitlines() == lines, "what is there is not trained again"
    rows = [line.split(" | ") for line in bench("--show", str(file)).splitlines()]
    found = {row[0].removeprefix("| "): row for row in rows}
    assert found["difference_sae"][5:] == ["–"] * 7 + ["– |"]
    assert float(found["batchtopk_crosscoder"][4]) > float(found["batchtopk_crosscoder, untrained"][4]) > 0.2


def test_a_coefficient_of_equal_l0_is_read_off_between_two_of_the_ladder(tmp_path):
    sys.path.insert(0, str(ROOT / "bench"))
    import planted as bench

    kept = bench.Kept(tmp_path / "ladder.jsonl")
    for times in bench.LADDER:  # L0 falls as 12 / times
        words = ["dictionary=l1_crosscoder", f"dictionary.sparsity.coefficient={times * 2.0:g}"]
        row = {"name": "", "words": words, "tokens": 1, "latents": 8, "pair": bench.APART}
        row["name"] = f"l1_crosscoder x {times:g}"
        kept.found[kept.key(row)] = row | {"l0": 12 / times}
    words = bench.at_equal_l0(kept, "l1_crosscoder", 8.0, tokens=1, latents=8)
    assert words == ("dictionary=l1_crosscoder", "dictionary.sparsity.coefficient=3")
    assert bench.at_equal_l0(kept, "l1_crosscoder", 10_000.0, tokens=1, latents=8) is None
    assert bench.at_equal_l0(kept, "topk_crosscoder", 8.0, tokens=1, latents=8)[1] == "dictionary.sparsity.k=8"
    dual = bench.at_equal_l0(kept, "delta_crosscoder", 24.0, tokens=1, latents=8)
    assert dual[1:] == ("dictionary.sparsity.k=8", "dictionary.sparsity.k_shared=16")
