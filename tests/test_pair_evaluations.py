"""What is measured on a pair alone, against planted truths; and the study that does so without a dictionary."""

import copy
import itertools
import json
import math
import shutil

import hydra
import pytest
import scipy.stats
import torch

import tunediff
from conftest import ROOT, save_model
from tunediff import folders as run_folders
from tunediff.evaluations import Given, LayerDivergence, Tokenizers
from tunediff.evaluations.pair.tokenizers import losses, responses
from tunediff.measures.clustered import ratio
from tunediff.models import ModelPair, ModelSource
from tunediff.report import in_words, members_under
from tunediff.settings import stream_key, within
from tunediff.shapes import Figure, Finding, Note, Refused, Table
from tunediff.study.reevaluate import reevaluate
from tunediff.study.train import study
from tunediff.sweep.plan import groups_of, look, members_in
from tunediff.text import Text
from tunediff.toy import language
from tunediff.toy.tokenizer import build_tokenizer


def toy_text(*, rows=None, **settings):
    """Traces without end, or as many `rows`."""
    settings = {"held_out": 0.1, "context": 256, "window": 16, "tokens_per_batch": 1024, **settings}
    return Text(lambda: itertools.islice(language.rows(0, "trace"), rows), **settings)


def measured(evaluation, pair, *, tokens=1500, text=None, tokens_per_batch=2048):
    found = list(evaluation.run(Given(pair, text or toy_text(), tokens, tokens_per_batch)))
    for figure in (item for item in found if isinstance(item, Figure)):
        figure.check()
    findings = {f.name: f for f in found if isinstance(f, Finding)}
    tables = {t.name: t.columns for t in found if isinstance(t, Table)}
    return findings, tables, [n.text for n in found if isinstance(n, Note)]


def pair_of(*places):
    return ModelPair(*(ModelSource(str(place), dtype="float32") for place in places)).load()


@pytest.fixture
def twins(folders):
    """A model beside a copy of itself, free to be changed."""
    pair = pair_of(folders["base"], folders["base"])
    pair.models["tuned"] = copy.deepcopy(pair.models["base"])
    return pair


# -- intervals over documents ----------------------------------------------------------------------------------------


def test_documents_of_one_token_have_students_interval_and_more_tokens_of_the_same_kind_do_not_narrow_it():
    values = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ones = torch.ones_like(values)
    low, high = ratio(values, ones).interval(0.99)
    error = values.std() / math.sqrt(30)
    expected = scipy.stats.t.interval(0.99, 29, loc=values.mean(), scale=error)
    assert (float(low), float(high)) == pytest.approx(expected)
    repeated = ratio(100 * values, 100 * ones).interval(0.99)
    assert torch.stack(repeated).tolist() == pytest.approx([float(low), float(high)])


def test_the_interval_of_a_mean_over_unequal_documents_covers_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        size = torch.randint(1, 30, (40,), generator=generator).double()
        level = torch.randn(40, generator=generator).double()  # of a document: its tokens are alike
        low, high = ratio(size * level, size).interval(0.9)
        covered += bool(low < 0 < high)
    assert 0.85 < covered / 400 < 0.95


def test_one_document_has_no_interval():
    assert all(bound.isnan() for bound in ratio(torch.ones(1), torch.ones(1)).interval(0.99))


# -- layers ----------------------------------------------------------------------------------------------------------


def test_a_model_against_itself_has_distance_0_and_cosine_1_at_every_layer(twins):
    findings, tables, notes = measured(LayerDivergence(), twins)
    layers = tables["layers"]
    assert layers["layer"] == [-1, 0, 1, 2] and notes == []
    assert layers["l2"] == layers["l2_low"] == layers["l2_high"] == [0.0] * 4
    assert layers["cosine"] == pytest.approx([1.0] * 4, abs=1e-6)
    assert layers["norm_base"] == layers["norm_tuned"]
    assert findings["layer_divergence/l2/largest"].value == 0


def test_an_edit_of_one_layer_shows_from_that_layer_on_and_not_before(twins):
    with torch.no_grad():
        twins.models["tuned"].model.layers[1].mlp.down_proj.weight.mul_(3.0)
    findings, tables, _ = measured(LayerDivergence(), twins)
    distance, cosine = tables["layers"]["l2"], tables["layers"]["cosine"]
    assert distance[:2] == [0.0, 0.0] and min(distance[2:]) > 1e-3
    assert cosine[:2] == pytest.approx([1.0, 1.0], abs=1e-6) and max(cosine[2:]) < 0.9999
    assert findings["layer_divergence/cosine/smallest_layer"].value in (1, 2)


def naive_layers(pair, batches):
    """By transformers' own hidden states, which give the last layer behind the final norm: without one it is the
    residual stream. Mean and 99 % bounds [layer, measure]."""
    models = [copy.deepcopy(model) for model in pair.models.values()]
    each: dict[int, list] = {}
    for model in models:
        model.model.norm = torch.nn.Identity()
    for batch in batches:
        with torch.no_grad():
            base, tuned = (
                torch.stack(m(batch.ids[0], attention_mask=batch.mask[0], output_hidden_states=True).hidden_states)
                for m in models
            )
        base, tuned = (states.flatten(1, 2)[:, batch.places[0]].double() for states in (base, tuned))
        norms = base.norm(dim=-1), tuned.norm(dim=-1)
        cosine = (base * tuned).sum(-1) / (norms[0] * norms[1])
        values = torch.stack([(base - tuned).norm(dim=-1), cosine, *norms], dim=1)  # [layer, measure, token]
        for document in batch.document.unique().tolist():
            each.setdefault(document, []).append(values[..., batch.document == document])
    documents = [torch.cat(parts, dim=-1) for parts in each.values()]
    count, mean = len(documents), torch.cat(documents, dim=-1).mean(-1)
    without = [torch.cat(documents[:n] + documents[n + 1 :], dim=-1).mean(-1) for n in range(count)]
    error = sum((mean - one).square() * (count - 1) / count for one in without).sqrt()
    square, fourth = (sum(values.shape[-1] ** power for values in documents) for power in (2, 4))
    reach = scipy.stats.t.ppf(0.995, square**2 / fourth * (1 - 1 / count)) * error
    return {"": mean, "_low": mean - reach, "_high": mean + reach}


def test_layers_are_those_of_the_models_own_hidden_states_in_any_batching(pair):
    """Long documents are read in pieces that come in several batches: they are still one document."""
    text = toy_text(rows=40, held_out=0.5, context=50)
    expected = naive_layers(pair, Given(pair, text, 10**6).held_out)
    for tokens_per_batch in (2048, 200):
        _, tables, _ = measured(LayerDivergence(), pair, text=text, tokens=10**6, tokens_per_batch=tokens_per_batch)
        for n, name in enumerate(("l2", "cosine", "norm_base", "norm_tuned")):
            for part, values in expected.items():
                assert tables["layers"][name + part] == pytest.approx(values[:, n].tolist(), rel=1e-5)


def test_unequal_widths_and_depths_have_norms_but_no_distance(folders):
    findings, tables, notes = measured(LayerDivergence(), pair_of(folders["base"], folders["wide"]))
    layers = tables["layers"]
    assert layers["layer"] == [-1, 0, 1, 2] and set(layers["l2"]) == set(layers["cosine_high"]) == {None}
    assert min(layers["norm_tuned"]) > 0 and findings == {}
    assert "(base 32, tuned 48)" in notes[0] and "(base 3 layers, tuned 4)" in notes[1]


def test_a_layer_that_overflows_is_told_and_has_no_finding(twins):
    with torch.no_grad():
        twins.models["tuned"].model.layers[2].mlp.down_proj.weight.fill_(torch.inf)
    findings, tables, notes = measured(LayerDivergence(), twins)
    assert findings == {} and "Layers 2 gave values that are not finite" in notes[0]
    assert tables["layers"]["l2"][:3] == [0.0] * 3


# -- tokenizers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coarse_and_fine(tmp_path_factory, tokenizer):
    """Two models of one vocabulary's size; the tuned one came with a tokenizer of fewer merges."""
    place = tmp_path_factory.mktemp("two_tokenizers")
    fine = build_tokenizer(["Anna has 3 apples"], size=300)
    assert len(fine) < len(tokenizer)
    save_model(place / "base", tokenizer, seed=0)
    save_model(place / "tuned", tokenizer, seed=1)
    fine.save_pretrained(place / "tuned")
    save_model(place / "small", fine, seed=1)
    return place


def two_tokenizers(place, tuned="tuned"):
    sources = (ModelSource(str(place / role), dtype="float32") for role in ("base", tuned))
    return ModelPair(*sources, align="by_text").load()


def test_a_uniform_model_needs_log2_of_the_vocabulary_bits_a_token_whatever_the_tokenizer(coarse_and_fine):
    pair = two_tokenizers(coarse_and_fine)
    with torch.no_grad():
        for model in pair.models.values():
            model.get_output_embeddings().weight.zero_()
    findings, tables, notes = measured(Tokenizers(), pair)
    table = tables["tokenizers"]
    vocabulary = pair.configs["base"].vocab_size
    assert list(zip(table["model"], table["tokenizer"], strict=True)) == [
        ("base", "base"), ("tuned", "base"), ("base", "tuned"), ("tuned", "tuned"),
    ]  # fmt: skip
    for n in range(4):
        bits = math.log2(vocabulary) * table["tokens"][n] / table["bytes"][n]
        assert table["bits_per_byte"][n] == pytest.approx(bits, rel=1e-5)
        assert table["nats_per_token"][n] == pytest.approx(math.log(vocabulary), rel=1e-5)
    assert len(set(table["bytes"])) == 1 and table["tokens"][0] < table["tokens"][2]
    # per token both look alike; per byte the one with fewer merges is worse by exactly its extra tokens
    extra = math.log2(vocabulary) * (table["tokens"][2] - table["tokens"][0]) / table["bytes"][0]
    for place in ("base", "tuned", "pair"):
        assert findings[f"tokenizers/difference/{place}"].value == pytest.approx(extra, rel=1e-5)
    assert any("The base tokenizer serves the pair better" in note for note in notes)


def test_losses_are_the_models_own_in_any_batching(pair, tokenizer):
    text = toy_text()
    pieces = [
        responses(row, [tokenizer], text)[0] for _, row in zip(range(12), text.named_rows(held_out=True), strict=False)
    ]
    alone = []
    for ids, first, size, left_out in pieces:
        assert not left_out  # one tokenizer has no foreign marks
        with torch.no_grad():
            logits = pair.models["tuned"](torch.tensor([ids])).logits[0].double()
        alone.append(-sum(logits[n - 1].log_softmax(-1)[ids[n]] for n in range(first, len(ids))))
        assert len(tokenizer.decode(ids[first:]).encode()) == size
    for tokens_per_batch in (1, 400, 10_000):
        found = losses(Given(pair, text, 1, tokens_per_batch), "tuned", pieces, "")
        assert torch.allclose(found, torch.stack(alone), rtol=1e-5)


def test_every_tokenizer_scores_the_same_characters(coarse_and_fine):
    base, tuned = (two_tokenizers(coarse_and_fine).tokenizer_of(role) for role in ("base", "tuned"))
    row = {"prompt": "How many?", "thinking": "Okay, so 12+30=42. 東京 🙂.", "answer": "42"}
    whole = "<think>\nOkay, so 12+30=42. 東京 🙂.\n</think>\n\n42"
    for pieces in (responses(row, [base, tuned], toy_text()), responses({"text": whole}, [base, tuned], toy_text())):
        said = {t.decode(p.ids[p.first :]) for t, p in zip((base, tuned), pieces, strict=True)}
        assert said == ({whole} if pieces[0].first > 1 else {whole.removeprefix("<think>")})
    # a template that opens the thinking itself: the tag is nobody's to predict
    opening = copy.deepcopy(base)
    opening.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    for tokenizer, piece in zip((opening, tuned), responses(row, [opening, tuned], toy_text()), strict=True):
        assert tokenizer.decode(piece.ids[piece.first :]) == whole.removeprefix("<think>\n")
    # the finer tokenizer fills the context first, and both end there
    for context in range(15, 60, 5):
        pieces = responses(row, [base, tuned], toy_text(context=context))
        if pieces is not None:
            assert max(len(piece.ids) for piece in pieces) <= context
            said = [t.decode(p.ids[p.first :]) for t, p in zip((base, tuned), pieces, strict=True)]
            assert said[0] == said[1] and whole.startswith(said[0])
    assert responses(row, [base, tuned], toy_text(context=8)) is None


def test_ids_that_a_model_has_no_embedding_for_are_refused_with_the_numbers(coarse_and_fine, tokenizer):
    pair = two_tokenizers(coarse_and_fine, "small")
    findings, tables, notes = measured(Tokenizers(), pair)
    rows = pair.configs["tuned"].vocab_size
    refusal = f"The base tokenizer has ids up to {len(tokenizer) - 1:,}, but the embedding of the tuned model has {rows:,} rows"
    assert any(note.startswith(refusal) for note in notes)
    assert len(tables["tokenizers"]["model"]) == 3
    assert "tokenizers/difference/base" in findings and "tokenizers/difference/pair" not in findings


def test_a_pair_with_one_tokenizer_is_measured_once_and_says_so(pair):
    findings, tables, notes = measured(Tokenizers(), pair)
    assert notes == ["Both models have the same tokenizer: there is none to choose, and each model is measured once."]
    assert tables["tokenizers"]["model"] == ["base", "tuned"] and set(tables["tokenizers"]["tokenizer"]) == {"shared"}
    assert findings["tokenizers/special_tokens/differing_share"].value == 0
    bits = findings["tokenizers/bits_per_byte/base/shared"]
    assert bits.low < bits.value < bits.high and "comparable across tokenizers" in bits.meaning
    assert "NOT comparable" in findings["tokenizers/nats_per_token/base/shared"].meaning


def test_a_special_token_that_means_another_thing_is_told(pair, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"bos_token": "<begin>"})
    pair._tokenizers["tuned"] = other
    findings, tables, notes = measured(Tokenizers(), pair)
    table = tables["special_tokens"]
    row = table["token"].index("<begin>")
    assert table["base_id"][row] is None and table["base_pieces"][row] > 1
    assert table["tuned_id"][row] == len(tokenizer) and table["tuned_use"][row] == "bos"
    assert findings["tokenizers/special_tokens/differing_share"].value == pytest.approx(1 / len(table["token"]))
    assert (
        f"'<begin>' ({table['base_pieces'][row]} ordinary ids in base, id {len(tokenizer)}, bos in tuned)" in notes[0]
    )


# -- a study without a dictionary ------------------------------------------------------------------------------------


def composed(*words, name="train"):
    small = ["scale=smoke", "sweep=test"] if name == "train" else []
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return hydra.compose(name, ["trainer=cpu", *small, *words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("study") / "run"
    with within(place):
        study(composed("experiment=choose_layer", "logger=csv"), place)
    return place


def test_the_pair_alone_has_findings_tables_and_a_page_and_no_dictionary(folder):
    content = json.loads((folder / "findings.json").read_text())
    names = {f["name"] for f in content["findings"]}
    assert {"layer_divergence/l2/largest_layer", "tokenizers/bits_per_byte/tuned/shared"} <= names
    assert set(content["study"]) == {"model_pair", "base", "tuned", "evaluation_tokens", "version"}
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {"report.html", "tables/layers.parquet", "tables/tokenizers.parquet", "config.yaml"} <= present
    assert not any(name.startswith(("dictionary", "checkpoints", "tables/training")) for name in present)
    logged = (folder / "csv" / "metrics.csv").read_text().splitlines()
    assert "layer_divergence/l2/largest" in logged[0] and len(logged) == 2


def test_what_is_finished_is_not_measured_again(folder, capsys):
    before = (folder / "findings.json").stat().st_mtime_ns
    study(composed("experiment=choose_layer"), folder)  # a logger cannot change a number
    assert "finished already" in capsys.readouterr().out
    assert (folder / "findings.json").stat().st_mtime_ns == before


def test_a_finished_run_is_never_written_over_by_another_study_also_where_its_state_is_gone(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    for gone in ("nothing", "state.json"):
        (tmp_path / "run" / gone).unlink(missing_ok=True)
        with pytest.raises(Refused, match="holds another study, which is finished, with other seed"):
            study(composed("experiment=choose_layer", "seed=7"), tmp_path / "run")
    assert (tmp_path / "run" / "findings.json").read_bytes() == (folder / "findings.json").read_bytes()


def test_a_finished_run_is_measured_again_to_the_same_numbers(folder):
    before = json.loads((folder / "findings.json").read_text())
    (left := folder / "tables" / "layers.parquet.7.partial").write_bytes(b"of a process that was killed")
    reevaluate(composed(f"run={folder}", "evaluation=[layer_divergence]", name="evaluate"))
    assert not left.exists()
    assert json.loads((folder / "findings.json").read_text()) == before
    with pytest.raises(Refused, match="evaluation=geometry needs a dictionary, and this study trains none"):
        reevaluate(composed(f"run={folder}", "evaluation=[geometry]", name="evaluate"))


def test_a_loaded_run_of_a_pair_has_no_dictionary_and_can_be_asked_more(folder):
    run = tunediff.load(folder)
    assert run.dictionary is None and run.table("layers").num_rows == 5
    found = {f.name: f for f in LayerDivergence().run(run.given()) if isinstance(f, Finding)}
    assert found["layer_divergence/l2/largest"] == run.findings["layer_divergence/l2/largest"]


def test_it_stands_in_a_comparison(folder):
    assert "finished" in in_words(members_under([folder]))


def test_an_evaluation_of_a_dictionary_is_refused_before_models_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSource, "weights", lambda _: pytest.fail("weights were loaded"))
    with pytest.raises(Refused, match=r"evaluation=fidelity needs a dictionary.*\[layer_divergence,tokenizers\]"):
        study(composed("experiment=choose_layer", "evaluation=[fidelity]"), tmp_path / "run")


def test_half_a_dictionary_is_refused(tmp_path):
    with pytest.raises(Refused, match="has dictionary, but no l1_schedule, optimizer, activations: a dictionary is"):
        study(composed("experiment=choose_layer", "dictionary=sae"), tmp_path / "run")


def test_a_study_with_a_dictionary_may_ask_about_the_pair_too(tmp_path):
    study(composed("evaluation=[layer_divergence,geometry]", "budget.tokens=2048"), tmp_path)
    names = {f["name"] for f in json.loads((tmp_path / "findings.json").read_text())["findings"]}
    assert {"layer_divergence/l2/largest", "geometry/count/shared"} <= names


def test_an_estimate_is_one_pass_of_both_models(capsys, tmp_path):
    study(composed("experiment=choose_layer", "dry_run=true"), tmp_path / "run")
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line[:4] == ["0", "1", "0-3", "2,048"] and not (tmp_path / "run").exists()


def test_a_sweep_over_pairs_is_a_group_a_pair_and_shares_none_with_a_dictionary(tmp_path, folder):
    lines = [["model_pair=toy"], ["model_pair=toy_self"], ["model_pair=toy", "budget.evaluation_tokens=4000"]]
    members = members_in(tmp_path, [(words, composed("experiment=choose_layer", *words)) for words in lines])
    checkpoints = look(tmp_path, members, {})
    groups = groups_of(tmp_path, members, checkpoints, pack=True, fits=lambda _: True)
    assert [len(group.members) for group in groups] == [2, 1]
    assert stream_key(members[0].run.cfg) != stream_key(composed())
    assert members[0].run.identity == run_folders.read_json(folder / "identity.json")["identity"]
