"""Attention on the opening sentence, and the KL gap that latents close: against planted and naive truths."""

import copy
import itertools
import re

import pytest
import torch

from tunediff.dictionary import Crosscoder, Linear, Normalisation
from tunediff.evaluations import AttentionSinks, Given, KLPatching, Trained
from tunediff.evaluations.pair.attention_sinks import GROUPS, Sums, measured, sentence_starts, summed, watch
from tunediff.evaluations.reading.kl_patching import places, replacements
from tunediff.hookpoints import Point, attending, writing
from tunediff.shapes import (
    BASE,
    DIFFERENCE,
    ROLES,
    SEGMENTS,
    TUNED,
    Figure,
    Finding,
    Note,
    Refused,
    Rows,
    Stream,
    Table,
)
from tunediff.text import Text, encode
from tunediff.toy import language

WIDTH = 32
STREAMS = [Stream(role, "resid_post", 1, WIDTH) for role in ROLES]


def text_of(kind="trace", *, rows=150):
    return Text(
        lambda: itertools.islice(language.rows(0, kind), rows),
        held_out=0.1,
        context=256,
        window=16,
        tokens_per_batch=1024,
    )


def evaluated(evaluation, pair, dictionary=None, *, text=None, tokens_per_batch=1024):
    given = Given(pair, text or text_of(), 10**6, tokens_per_batch)
    found = list(evaluation.run(given if dictionary is None else given.reading(dictionary)))
    for figure in (item for item in found if isinstance(item, Figure)):
        figure.check()
    findings = {f.name: f for f in found if isinstance(f, Finding)}
    tables = {t.name: t.columns for t in found if isinstance(t, Table)}
    return findings, tables, [n.text for n in found if isinstance(n, Note)]


def rows_of(table, **wanted):
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


# -- attention -------------------------------------------------------------------------------------------------------


@pytest.fixture
def indifferent(pair):
    """Queries that are zero attend to all they see alike."""
    with torch.no_grad():
        for model in pair.models.values():
            for layer in model.model.layers:
                layer.self_attn.q_proj.weight.zero_()
                layer.self_attn.q_proj.bias.zero_()
    return pair


def test_a_model_that_attends_to_everything_alike_has_no_sink_by_any_yardstick(indifferent):
    findings, tables, notes = evaluated(AttentionSinks(), indifferent)
    table = tables["attention_sinks"]
    assert notes == [] and len(table["mass"]) == 2 * 3 * 4 * len(GROUPS)  # models, layers, heads
    assert table["mass"] == pytest.approx(table["uniform"], rel=1e-4)
    assert table["relative"] == pytest.approx([1.0] * len(table["mass"]), rel=1e-4)
    for row in rows_of(table, group="prefix"):
        assert row["times"] == pytest.approx(1, rel=1e-4) and row["excess"] == pytest.approx(0, abs=1e-5)
    assert {row["times"] for row in rows_of(table, group="first")} == {None}
    assert findings["attention_sinks/difference/prefix"].value == pytest.approx(0, abs=1e-5)


def naive(pair, role, text):
    """Every document alone, with loops: mean masses [layer, head, group], and the ratio of prefix to windows."""
    model = copy.deepcopy(pair.models[role])
    model.set_attn_implementation("eager")
    tokenizer, masses, prefixes, windows, queries = pair.tokenizers[0], 0.0, 0.0, 0.0, 0
    for row in text.named_rows(held_out=True):
        (document,) = text.documents(row, [tokenizer])
        with torch.no_grad():
            weights = model(torch.tensor([document.ids[0]]), output_attentions=True).attentions
        weights = torch.stack(weights)[:, 0].double()  # [layer, head, query, key]
        place = dict(zip(document.places[0], range(len(document.segments)), strict=True))
        segments = {p: SEGMENTS[document.segments[n]] for p, n in place.items()}
        opening = [p for p, n in place.items() if document.labels["opening"][n]]
        start, stop = opening[0], opening[-1] + 1
        tag = min(p for p, name in segments.items() if name == "prefix")
        asking = [p for p, name in segments.items() if name in ("thinking", "answer") and p >= stop]
        groups = [[0], range(1, tag), range(tag, start), opening]
        later = [p for p, name in segments.items() if name == "thinking" and p >= stop]
        words = {p: tokenizer.decode([document.ids[0][p]]) for p in (stop - 1, *later)}
        begins = [p for p in later if words[p].strip() and re.search(r"[.!?]$|\n", words[p - 1])]
        begins = [
            p for p in begins if (words[p - 1] == "\n" or words[p][0] == " ") and p + len(opening) <= later[-1] + 1
        ]
        for q in asking:
            each = [weights[..., q, list(keys)].sum(-1) for keys in (*groups, range(stop, q), [q])]
            masses, queries = masses + torch.stack(each, -1), queries + 1
            shares = []
            for begin in begins:
                shift = begin - start
                if q + shift in asking:
                    seen = weights[..., q + shift, :]
                    shares.append(
                        seen[..., begin : begin + len(opening)].sum(-1) / seen[..., shift + 1 : q + shift + 1].sum(-1)
                    )
            if shares:
                prefixes = prefixes + each[3] / (1 - each[0])
                windows = windows + torch.stack(shares).mean(0)
    return masses / queries, prefixes / windows


def test_masses_are_those_of_every_document_alone_in_any_batching_and_sum_to_1(pair):
    text = text_of(rows=90)
    for tokens_per_batch in (1024, 100):
        _, tables, _ = evaluated(AttentionSinks(), pair, text=text, tokens_per_batch=tokens_per_batch)
        for role in ROLES:
            masses, times = naive(pair, role, text)
            rows = rows_of(tables["attention_sinks"], model=role)
            found = torch.tensor([row["mass"] for row in rows]).view(masses.shape)
            assert torch.allclose(found.double(), masses, atol=1e-5)
            assert torch.allclose(found.sum(-1), torch.ones(3, 4), atol=1e-5)
            found = torch.tensor([row["times"] for row in rows if row["group"] == "prefix"])
            assert torch.allclose(found.double().view(times.shape), times, rtol=1e-4)


def planted(pair, weights_of):
    """What is measured of made-up attention: weights_of(query, key, first of the prefix, one past it) for each pair."""
    trained = Given(pair, text_of(), 10**6, 1024)
    parts = []
    for batch in trained.held_out:
        watched = watch(batch, 0, pair.tokenizers[0])
        rows, length = batch.ids[0].shape
        prefix = watched.members[..., GROUPS.index("prefix")]
        q, k = torch.arange(length)[:, None], torch.arange(length)[None]
        scores = torch.stack([weights_of(q, k, int(p.argmax()), int(p.argmax() + p.sum())) for p in prefix])
        scores = scores.tril() * batch.mask[0][:, None]
        weights = (scores / scores.sum(-1, keepdim=True).clamp(min=1e-30))[:, None]
        parts.append((summed(weights, watched)[:, None], watched.queries.sum(1), watched.matched.sum(1)))
    attention, queries, matched = (torch.cat(part).double() for part in zip(*parts, strict=True))
    sums = Sums(attention, torch.ones(len(queries), len(GROUPS)), queries, matched, torch.arange(len(queries)))
    return {name: e.value[0, 0, GROUPS.index("prefix")].item() for name, e in measured(sums).items()}


def test_a_head_that_looks_only_at_the_distance_treats_the_prefix_as_any_sentence(pair):
    found = planted(pair, lambda q, k, start, stop: 0.9 ** (q - k).clamp(min=0).float())
    assert found["times"] == pytest.approx(1, rel=1e-4) and found["excess"] == pytest.approx(0, abs=1e-5)


def test_a_first_token_that_takes_most_of_the_attention_is_no_matter_of_the_prefix(pair):
    found = planted(pair, lambda q, k, start, stop: torch.where(k == 0, 1000.0, 1.0).expand(len(q), -1))
    assert found["times"] == pytest.approx(1, rel=1e-3)
    assert found["mass"] < 0.05


def test_a_sink_in_the_prefix_shows_beyond_its_distance(pair):
    def sink(q, k, start, stop):
        return (0.9 ** (q - k).clamp(min=0).float()) + 50.0 * ((k >= start) & (k < stop))

    found = planted(pair, sink)
    assert found["mass"] > 0.9 and found["times"] > 5 and found["excess"] > 0.5


def test_a_sentence_begins_after_a_line_break_or_a_stop_with_a_space_and_not_inside_a_number(tokenizer):
    ids = list(encode(tokenizer, "Okay. Anna has 3.5 apples.\n12+7=19. Wait, no? So")["input_ids"])
    words = [tokenizer.decode([number]) for number in ids]
    starts = sentence_starts(ids, 1, len(ids), tokenizer)
    assert ["".join(words[s:])[:6].strip() for s in starts] == ["Anna", "12+7=1", "Wait,", "So"]


def test_the_models_way_of_attention_comes_back_also_after_a_failure(pair):
    model, seen = pair.models[TUNED], []
    ids = torch.tensor([[1, 2, 3]])
    before = model.config._attn_implementation
    assert before != "eager"
    with attending(model, lambda layer, weights: seen.append((layer, weights.shape))):
        model(ids)
    assert seen == [(n, (1, 4, 3, 3)) for n in range(3)] and model.config._attn_implementation == before
    with pytest.raises(RuntimeError, match="planted"), attending(model, lambda *_: None):
        raise RuntimeError("planted")
    assert model.config._attn_implementation == before
    model(ids)
    assert len(seen) == 3


def test_text_without_a_thinking_is_told_and_has_no_attention(pair):
    findings, tables, notes = evaluated(AttentionSinks(), pair, text=text_of("fact"))
    assert findings == {} and tables == {} and notes[0].startswith("attention_sinks was not measured")


# -- patching --------------------------------------------------------------------------------------------------------


def crosscoder(W_enc, W_dec, streams=STREAMS):
    made = Crosscoder(
        streams,
        latents=len(W_dec),
        sparsity=Linear(coefficient=0.0),
        normalisation=lambda widths: Normalisation(widths, kind="none"),
        encoder_start="random",
        shared_start=False,
        seed=0,
    )
    made.fit(Rows(torch.randn(64, sum(s.width for s in streams))))
    made.normalisation.largest_norm.fill_(torch.inf)
    with torch.no_grad():
        made.W_enc.copy_(W_enc)
        made.W_dec.copy_(W_dec)
        made.b_dec.zero_()
    return made.requires_grad_(False)


def perfect():
    """Half of the latents are base's coordinates, half tuned's."""
    return crosscoder(torch.eye(2 * WIDTH), torch.eye(2 * WIDTH))


def difference_in_tuned_only():
    """Shared latents are base's coordinates and write into both models alike; tuned-only ones are tuned - base."""
    one, none = torch.eye(WIDTH), torch.zeros(WIDTH, WIDTH)
    W_enc = torch.cat([torch.cat([one, -one], dim=1), torch.cat([none, one], dim=1)])
    return crosscoder(W_enc, torch.cat([torch.cat([one, one], dim=1), torch.cat([none, one], dim=1)]))


def imperfect():
    generator = torch.Generator().manual_seed(0)
    made = crosscoder(
        torch.randn(2 * WIDTH, 20, generator=generator) / 8, torch.randn(20, 2 * WIDTH, generator=generator) / 8
    )
    made.b_dec.copy_(torch.randn(2 * WIDTH, generator=generator))
    return made


def closed(findings, condition, place=""):
    return findings[f"kl_patching/closed/{condition}{place}"].value


def test_all_latents_of_a_perfect_dictionary_close_the_gap_everywhere_and_no_other_does(pair):
    findings, tables, notes = evaluated(KLPatching(best=64, labels=["step_end"]), pair, perfect())
    table = tables["kl_patching"]
    assert {"all", "prompt", "prefix", "thinking", "answer", "initial", "after_step_end"} == set(table["place"])
    for row in rows_of(table, condition="base"):
        assert row["kl"] > 1e-3 and row["closed"] == 0
    assert {row["kl"] for row in rows_of(table, condition="tuned")} == {0.0}
    for condition in ("all", "best", "reconstruction"):  # the best 64 are all
        assert [row["closed"] for row in rows_of(table, condition=condition)] == pytest.approx([1.0] * 7, abs=1e-5)
    for condition in ("base_only", "tuned_only"):
        assert closed(findings, condition) < 0.9
    for condition in ("offset", "error"):
        assert closed(findings, condition) == pytest.approx(0, abs=1e-5)
    assert any("No alive latent is shared" in note for note in notes)
    assert any("0 others are too few to draw as many" in note for note in notes)
    base = findings["kl_patching/kl/base"]
    assert base.low < base.value < base.high


def test_the_kind_that_holds_the_difference_closes_the_gap_and_the_shared_ones_do_nothing(pair):
    findings, tables, notes = evaluated(KLPatching(best=WIDTH, draws=2), pair, difference_in_tuned_only())
    for condition in ("tuned_only", "best"):
        assert closed(findings, condition) == pytest.approx(1, abs=1e-5)
    for condition in ("shared", "random", "random_smallest", "random_largest"):
        assert closed(findings, condition, "/thinking") == pytest.approx(0, abs=1e-5)
    (row,) = rows_of(tables["kl_patching"], condition="tuned_only", place="all")
    assert row["latents"] == WIDTH and row["closed"] == closed(findings, "tuned_only")
    assert len(notes) == 2 and not any(name.endswith(("base_only", "other")) for name in findings)


def test_the_parts_of_the_difference_make_it_up_again(pair):
    dictionary = imperfect()
    trained = Trained(pair, text_of(), 10**6, dictionary=dictionary)
    reading = next(iter(trained.readings("")))
    every = torch.arange(dictionary.latents)
    base, latents, offset, both, error, tuned, chosen, first, second = replacements(
        trained, reading, [("chosen", every), ("first", every[:7]), ("second", every[7:])]
    )
    assert torch.allclose(latents + offset + error - 2 * base, tuned, atol=1e-4)
    assert torch.allclose(latents + offset - base, both, atol=1e-4) and torch.allclose(chosen, latents, atol=1e-4)
    assert torch.allclose(first + second - base, latents, atol=1e-4) and not torch.allclose(offset, base, atol=0.1)


def test_bases_vectors_are_put_in_where_the_text_keeps_tokens_and_nowhere_else(pair):
    """By transformers' own hidden states, one document at a time."""
    text = text_of(rows=60)
    findings, _, _ = evaluated(KLPatching(draws=0), pair, imperfect(), text=text)
    total = tokens = 0
    for row in text.named_rows(held_out=True):
        (document,) = text.documents(row, pair.tokenizers)
        ids, kept = torch.tensor([document.ids[0]]), torch.tensor(document.places[0])
        with torch.no_grad():
            base = pair.models[BASE](ids, output_hidden_states=True).hidden_states[2]  # what leaves layer 1
            clean = pair.models[TUNED](ids).logits[0].double().log_softmax(-1)

            def put(value, kept=kept, base=base):
                return value.index_copy(1, kept, base[:, kept])

            with writing(pair.models[TUNED], Point("resid_post", 1), put):
                patched = pair.models[TUNED](ids).logits[0].double().log_softmax(-1)
        each = (clean.exp() * (clean - patched)).sum(-1)
        total, tokens = total + float(each[kept[kept > 0] - 1].sum()), tokens + int((kept > 0).sum())
        assert len(kept) < len(document.ids[0])  # markers are dropped
    assert findings["kl_patching/kl/base"].value == pytest.approx(total / tokens, rel=1e-4)


def test_places_are_by_the_predicted_token_and_labels_by_the_token_before_it(pair):
    batch = Given(pair, text_of(), 10**6).held_out[0]
    found = places(batch, 3, ["step_end", "unknown"])
    tokenizer = pair.tokenizers[0]
    for row in range(len(batch.ids[0])):
        here = batch.sequence == row
        words = [tokenizer.decode([number]) for number in batch.token[here & found["initial"]].tolist()]
        assert len(words) == 3 and words[:2] == ["<think>", "\n"]
    after = batch.position[found["after_step_end"]]
    labelled = batch.position[batch.labels["step_end"]]
    assert len(after) > 0 and set((after - 1).tolist()) <= set(labelled.tolist()) and "after_unknown" not in found
    assert not (found["prompt"] & found["initial"]).any() and found["all"].all()


def test_patching_gives_the_same_in_any_batching_and_changes_nothing(pair):
    dictionary = imperfect()
    before = [copy.deepcopy(d.state_dict()) for d in (dictionary, *pair.models.values())]
    state = torch.get_rng_state()
    first, second = (
        evaluated(KLPatching(best=4, draws=2), pair, dictionary, text=text_of(rows=60), tokens_per_batch=size)[0]
        for size in (1024, 150)
    )
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].value == pytest.approx(second[name].value, rel=1e-3, abs=1e-4)
    assert torch.equal(torch.get_rng_state(), state)
    for old, new in zip(before, (dictionary, *pair.models.values()), strict=True):
        assert all(torch.equal(old[name], value) for name, value in new.state_dict().items())


def test_a_model_against_itself_has_no_gap_and_says_so(pair):
    pair.models[BASE] = pair.models[TUNED]
    findings, _, notes = evaluated(KLPatching(draws=0), pair, imperfect(), text=text_of(rows=60))
    assert findings["kl_patching/kl/base"].value == 0 and closed(findings, "all") is None
    assert "kl_patching: at 'all' base's vectors predict what tuned's do: there is no gap to close." in notes


@pytest.mark.parametrize("streams", [STREAMS[:1], [STREAMS[1]._replace(role=DIFFERENCE)]])
def test_a_dictionary_that_does_not_write_both_models_is_refused(pair, streams):
    one = crosscoder(torch.eye(WIDTH), torch.eye(WIDTH), streams)
    with pytest.raises(Refused, match="it needs one that reads both models"):
        evaluated(KLPatching(), pair, one)
