"""An adapter in the place of some tuned MLPs: what must hold whatever it learned, and the numbers against a pass by hand."""

import functools

import pytest
import torch

from conftest import logits_of
from test_behaviour import parted
from test_evaluations import identity_dictionary
from tunediff.dictionary import TopK, TranscoderAdapter
from tunediff.evaluations import Replacement, Trained
from tunediff.evaluations.transcoders.replacement import Partial
from tunediff.shapes import ADAPTER, BASE, HYBRID, TUNED, Refused
from tunediff.text import Text
from tunediff.toy import language

DEPTH, LATENTS = 3, 12
TEXT = Text(functools.partial(language.mixture, 1, {"trace": 1.0}), held_out=language.is_held_out, context=64)


def untrained(pair, **given):
    streams = pair.streams("mlp_in", "all", reads=ADAPTER)
    return TranscoderAdapter(streams, latents=LATENTS, sparsity=TopK(4), **given).eval().requires_grad_(False)


def random(pair):
    """Latents 0 to 2 of each layer never fire, the others write something."""
    adapter = untrained(pair)
    generator = torch.Generator().manual_seed(3)
    for layer, one in enumerate(adapter.layers):
        one.W_dec.copy_((layer + 1) * torch.randn(one.W_dec.shape, generator=generator) / 4)
        one.b_enc[:3] = -100.0
    return adapter


def measured(pair, adapter):
    pair.stand_beside(adapter)
    trained = Trained(pair, TEXT, 300, tokens_per_batch=150, dictionary=adapter)
    return trained, *parted(Replacement().run(trained))


def rows(table, **where):
    found = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return [row for row in found if all(row[name] == value for name, value in where.items())]


def test_an_untrained_adapter_is_the_hybrid_wherever_it_stands(pair):
    _, findings, tables, _ = measured(pair, untrained(pair))
    partial = tables["partial_replacement"]
    for name in ("kl", "kl_low", "kl_high", "lm_loss"):
        ours, bare = ([row[name] for row in rows(partial, **{"with": who})] for who in (ADAPTER, HYBRID))
        assert ours == bare and len(ours) == 2 * (DEPTH + 1)
    assert tables["residual_nmse"]["adapter"] == tables["residual_nmse"]["hybrid"]
    assert findings["replacement/kl_recovered"].value == 0 < findings["replacement/kl/hybrid"].value


def test_where_the_pair_shares_its_mlps_there_is_nothing_to_replace(pair):
    for ours, theirs in zip(*(pair.models[role].model.layers for role in (BASE, TUNED)), strict=True):
        ours.mlp.load_state_dict(theirs.mlp.state_dict())
    _, findings, tables, (note,) = measured(pair, untrained(pair))
    assert set(tables["partial_replacement"]["kl"]) == {0.0} and "nothing an adapter could recover" in note
    assert {*tables["residual_nmse"]["hybrid"], *tables["residual_nmse"]["adapter"]} == {0.0}
    assert len(set(tables["partial_replacement"]["lm_loss"])) == 1 and "replacement/kl_recovered" not in findings


def test_no_layer_is_the_tuned_model_and_every_layer_the_adapted_one(pair):
    trained, findings, tables, notes = measured(pair, random(pair))
    cut = {(row["direction"], row["with"], row["cutoff"]): row["kl"] for row in rows(tables["partial_replacement"])}
    for who in (ADAPTER, HYBRID):
        assert cut["adapter_first", who, 0] == cut["tuned_first", who, DEPTH] == 0
        assert cut["adapter_first", who, DEPTH] == cut["tuned_first", who, 0] == findings[f"replacement/kl/{who}"].value
        kl = losses = tokens = 0.0
        for batch in trained.held_out:
            places = batch.places[0][batch.places[0] % batch.ids[0].shape[1] > 0]
            log_p, log_q = (
                logits_of(pair, role, batch).flatten(0, 1)[places - 1].log_softmax(-1) for role in (TUNED, who)
            )
            kl += float((log_p.exp() * (log_p - log_q)).sum())
            losses -= float(log_q.gather(1, batch.ids[0].flatten()[places][:, None]).sum())
            tokens += len(places)
        assert findings[f"replacement/kl/{who}"].value == pytest.approx(kl / tokens, rel=1e-4)
        assert findings[f"replacement/lm_loss/{who}"].value == pytest.approx(losses / tokens, rel=1e-5)
        worst = findings[f"replacement/worst_kl/{who}"]
        assert worst.value == max(kl for (_, whose, _), kl in cut.items() if whose == who) and worst.low < worst.value
    ours, bare = (findings[f"replacement/kl/{who}"].value for who in (ADAPTER, HYBRID))
    assert findings["replacement/kl_recovered"].value == pytest.approx(1 - ours / bare) and not notes
    assert Partial("tuned_first", ADAPTER, 1).choices(3) == (TUNED, ADAPTER, ADAPTER)


@torch.no_grad()
def by_hand(pair, adapter, batch, choices):
    """Logits and the residual stream at every point, of unpadded rows: layer by layer from the modules of both models."""
    tuned, base = (pair.models[role].model for role in (TUNED, BASE))
    logits, stream = [], []
    for ids, mask in zip(batch.ids[0], batch.mask[0], strict=True):
        h = tuned.embed_tokens(ids[mask.bool()][None])
        turned = tuned.rotary_emb(h, torch.arange(h.shape[1])[None])
        points = [h]
        for n, (layer, choice) in enumerate(zip(tuned.layers, choices, strict=True)):
            h = h + layer.self_attn(layer.input_layernorm(h), position_embeddings=turned, attention_mask=None)[0]
            x = layer.post_attention_layernorm(h)
            if choice == TUNED:
                h = h + layer.mlp(x)
            else:
                one = adapter.layers[n]
                best = (x @ one.W_enc + one.b_enc).relu().topk(4, dim=-1)
                latents = torch.zeros(*x.shape[:2], LATENTS).scatter(-1, best.indices, best.values)
                h = h + base.layers[n].mlp(x) + (latents @ one.W_dec + one.b_dec if choice == ADAPTER else 0)
            points.append(h)
        logits.append(pair.models[TUNED].lm_head(tuned.norm(h))[0])
        stream.append(torch.stack(points)[:, 0])
    return logits, stream


def test_it_gives_the_numbers_of_a_pass_written_by_hand(pair):
    adapter = random(pair)
    trained, _, tables, _ = measured(pair, adapter)
    choices = {None: (TUNED,) * 3, "adapter_first": (ADAPTER, TUNED, TUNED), "tuned_first": (TUNED, ADAPTER, ADAPTER)}
    kl, loss, errors, squares, tokens = dict.fromkeys(choices, 0.0), dict.fromkeys(choices, 0.0), 0, 0, 0
    for batch in trained.held_out:
        row, column = batch.places[0] // batch.ids[0].shape[1], batch.places[0] % batch.ids[0].shape[1]
        column = column - (batch.mask[0] == 0).long().argmin(1)[row]  # where padding stands in front
        found = {name: by_hand(pair, adapter, batch, some)[0] for name, some in choices.items()}
        own, ours = (by_hand(pair, adapter, batch, (who,) * 3)[1] for who in (TUNED, ADAPTER))
        for r, c in zip(row.tolist(), column.tolist(), strict=True):
            squares += own[r][:, c].square().sum(-1)
            errors += (ours[r][:, c] - own[r][:, c]).square().sum(-1)
            if c == 0:
                continue
            tokens += 1
            said = batch.ids[0][r][batch.mask[0][r].bool()][c]
            clean = found[None][r][c - 1].log_softmax(-1)
            for name in choices:
                changed = found[name][r][c - 1].log_softmax(-1)
                kl[name] += float((clean.exp() * (clean - changed)).sum())
                loss[name] -= float(changed[said])
    for name in ("adapter_first", "tuned_first"):
        (got,) = rows(tables["partial_replacement"], direction=name, cutoff=1, **{"with": ADAPTER})
        assert got["kl"] == pytest.approx(kl[name] / tokens, rel=1e-3)
        assert got["lm_loss"] == pytest.approx(loss[name] / tokens, rel=1e-4)
    assert tables["residual_nmse"]["adapter"] == pytest.approx((errors / squares).tolist(), rel=1e-3)
    assert tables["residual_nmse"]["adapter"][0] == 0


def test_latents_of_each_layer_are_counted_in_the_adapted_model(pair):
    _, findings, tables, _ = measured(pair, random(pair))
    assert tables["adapter_layers"]["layer"] == [0, 1, 2]
    assert min(tables["adapter_layers"]["dead_fraction"]) >= 3 / LATENTS
    assert all(0 < l0 <= 4 for l0 in tables["adapter_layers"]["l0"])
    first, _, last = tables["adapter_layers"]["decoder_norm"]
    assert last > 2 * first
    assert findings["replacement/l0"].value == pytest.approx(sum(tables["adapter_layers"]["l0"]) / 3)


def test_a_dictionary_that_stands_beside_no_mlp_is_refused(pair):
    crosscoder = identity_dictionary(pair.streams("mlp_in", 1))
    with pytest.raises(Refused, match=r"evaluation=replacement .* is a Crosscoder: .*dictionary=transcoder_adapter"):
        list(Replacement().run(Trained(pair, TEXT, 100, dictionary=crosscoder)))
