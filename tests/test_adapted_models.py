"""A model with transcoder adapters, as a source like any other: from the files of a run, and from checkpoints in the
authors' format, written here by hand from the format's description."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
import yaml
from omegaconf import OmegaConf
from transformers import Qwen2ForCausalLM

import tunediff
from conftest import ROOT, save_model
from test_lora import save_adapter
from tunediff.dictionary import L1, BatchTopK, JumpReLU, TranscoderAdapter, save_dictionary
from tunediff.edits import Sequences, Zero, transcoder_edits
from tunediff.generation import VLLM, Decoding, Request
from tunediff.hookpoints import decoder_layers
from tunediff.models import AdaptedSource, ModelPair, ModelSource, PairError, pair_of_adapter, save_adapted
from tunediff.models.hybrid import adapted, hybrid
from tunediff.models.transcoder_files import TranscoderFiles
from tunediff.settings import build
from tunediff.shapes import ADAPTER, Refused
from tunediff.study.finetune import check_adapter

LAYERS, WIDTH, LATENTS = 3, 32, 8
IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
SPARSITIES = {
    "l1": (L1(0.1), {"_target_": "tunediff.dictionary.L1", "coefficient": 0.1}),
    "topk": (
        BatchTopK(2, threshold_memory=0.9),
        {
            "_target_": "tunediff.dictionary.BatchTopK",
            "k": 2,
            "threshold_memory": 0.9,
            "prefixes": [1.0],
            "k_schedule": {"_target_": "tunediff.schedules.Constant"},
        },
    ),
    "jumprelu": (JumpReLU(0.1), {"_target_": "tunediff.dictionary.JumpReLU", "coefficient": 0.1}),
}


def source(place, **settings):
    return ModelSource(str(place), dtype="float32", **settings)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def made_adapter(pair, sparsity, *, bias=True):
    """With decoders that write: what the planted values are is drawn."""
    streams = pair.streams("mlp_in", "all", reads=ADAPTER)
    adapter = TranscoderAdapter(streams, latents=LATENTS, sparsity=sparsity, decoder_bias=bias)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "threshold" not in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in adapter.named_buffers():
            if name.endswith("sparsity.threshold"):
                buffer.fill_(0.2)
    return adapter.eval().requires_grad_(False)


def run_folder(pair, folder, kind="l1", **settings):
    """What a run leaves of its dictionary."""
    sparsity, node = SPARSITIES[kind]
    adapter = made_adapter(pair, sparsity, **settings)
    config = {"_target_": "tunediff.dictionary.TranscoderAdapter", "_partial_": True, "latents": LATENTS, "seed": 0}
    config |= {"sparsity": node, "decoder_bias": settings.get("bias", True), "reads": ADAPTER, "objective": {"a": 1}}
    save_dictionary(adapter, folder / "dictionary", config)
    return adapter


def checkpoint(folders, folder, *, bias=True, sharded=False, layers=LAYERS, latents=LATENTS):
    """The tuned model in the authors' format; gives what each layer's transcoder is."""
    shutil.copytree(folders["tuned"], folder)
    generator = torch.Generator().manual_seed(7)
    parts = {}
    for layer in range(layers):
        at = f"model.layers.{layer}.mlp.transcoder"
        shapes = {"enc.weight": (latents, WIDTH), "enc.bias": (latents,), "dec.weight": (WIDTH, latents)}
        shapes |= {"dec.bias": (WIDTH,)} if bias else {}
        parts |= {f"{at}_{name}": 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    own = safetensors.torch.load_file(folder / "model.safetensors")
    if sharded:
        (folder / "model.safetensors").unlink()
        halves = dict(list(own.items())[:9]), dict(list(own.items())[9:])
        names = [name for n, name in enumerate(parts) if n % 2]
        halves[0].update({name: parts[name] for name in names})
        halves[1].update({name: value for name, value in parts.items() if name not in names})
        where = {}
        for n, half in enumerate(halves, 1):
            file = f"model-0000{n}-of-00002.safetensors"
            safetensors.torch.save_file(half, folder / file, metadata={"format": "pt"})
            where |= dict.fromkeys(half, file)
        index = {"metadata": {"total_size": 1}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        safetensors.torch.save_file(own | parts, folder / "model.safetensors", metadata={"format": "pt"})
    reconfigure(folder, transcoder_n_features=LATENTS, transcoder_dec_bias=bias)
    reconfigure(folder, architectures=["Qwen2ForCausalLMWithTranscoder"])
    return parts


def reconfigure(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def by_hand(model, parts):
    """Logits of the model with relu(W_enc x + b_enc) W_dec + b_dec added to each MLP's output by a hook."""
    handles = []

    def added(layer, inputs, output):
        at = f"model.layers.{layer}.mlp.transcoder"
        linear = torch.nn.functional.linear
        latents = linear(inputs[0], parts[f"{at}_enc.weight"], parts[f"{at}_enc.bias"]).relu()
        return output + linear(latents, parts[f"{at}_dec.weight"], parts.get(f"{at}_dec.bias"))

    for number, layer in enumerate(decoder_layers(model)):
        handles.append(layer.mlp.register_forward_hook(lambda _, i, o, number=number: added(number, i, o)))
    found = logits(model)
    for handle in handles:
        handle.remove()
    return found


def parameters(*models):
    """Bytes of the distinct tensors of several models."""
    held = {p.data_ptr(): p.numel() * p.element_size() for model in models for p in model.parameters()}
    return sum(held.values())


# -- from the files of a run -----------------------------------------------------------------------------------------


@pytest.fixture
def adapted_pair(pair, folders, tmp_path):
    """The tuned model beside itself with the base's MLPs and the adapter of a run."""
    run_folder(pair, tmp_path / "run")
    tuned = AdaptedSource(
        str(folders["tuned"]), dtype="float32", mlps=source(folders["base"]), transcoders=str(tmp_path / "run")
    )
    return ModelPair(source(folders["tuned"]), tuned)


@pytest.mark.parametrize("kind", SPARSITIES)
@pytest.mark.parametrize("place", ["", "dictionary"])
def test_a_runs_adapter_is_loaded_as_the_model_it_was_trained_in(pair, folders, tmp_path, kind, place):
    adapter = run_folder(pair, tmp_path / "run", kind, bias=kind != "l1")
    pair.stand_beside(adapter)
    made = AdaptedSource(
        str(folders["tuned"]), dtype="float32", mlps=source(folders["base"]), transcoders=str(tmp_path / "run" / place)
    )
    found = logits(made.weights())
    assert torch.equal(found, logits(pair.models[ADAPTER]))
    assert not torch.allclose(found, logits(pair.models["hybrid"]), atol=1e-2)
    assert made.name == "run" and str(folders["base"]) in made.described and made.remarks() == []


def test_a_pair_holds_the_tuned_model_once_and_of_the_base_its_mlps_alone(adapted_pair, folders):
    assert adapted_pair.shares_weights("tuned") and not adapted_pair.shares_weights("base")
    adapted_pair.load()
    base, tuned = (adapted_pair.models[role] for role in ("base", "tuned"))
    donor = Qwen2ForCausalLM.from_pretrained(folders["base"], dtype=torch.float32)
    assert base.lm_head.weight.data_ptr() == tuned.lm_head.weight.data_ptr()
    for one, other, theirs in zip(*(decoder_layers(model) for model in (base, tuned, donor)), strict=True):
        assert one.self_attn.q_proj.weight.data_ptr() == other.self_attn.q_proj.weight.data_ptr()
        assert torch.equal(other.mlp.mlp.up_proj.weight, theirs.mlp.up_proj.weight)
        assert not torch.equal(other.mlp.mlp.up_proj.weight, one.mlp.up_proj.weight)
    mlps = LAYERS * 3 * WIDTH * 2 * WIDTH
    transcoders = LAYERS * (2 * WIDTH * LATENTS + LATENTS + WIDTH)
    assert parameters(base, tuned) - parameters(base) == 4 * (mlps + transcoders)
    source = adapted_pair.sources["tuned"]
    assert source.added == mlps + transcoders
    assert source.size[0] == parameters(tuned) // 4  # embeddings are not tied
    plain = Qwen2ForCausalLM.from_pretrained(folders["tuned"], dtype=torch.float32)
    assert torch.equal(logits(base), logits(plain))


def test_the_latents_of_a_tuned_model_are_read_and_edited_at_their_hookpoint(adapted_pair):
    assert adapted_pair.width("tuned", "transcoder") == LATENTS  # before any weight is loaded
    adapted_pair.load()
    adapter = adapted_pair.sources["tuned"].beside.read()
    inside = decoder_layers(adapted_pair.models["tuned"])[1].mlp.transcoder
    assert torch.equal(adapter.layers[1].W_dec, inside.W_dec)
    ones = torch.ones(adapter.latents)
    everything = transcoder_edits(adapter, range(adapter.latents), Zero(), scale=ones, mean=ones, role="tuned")
    known = Sequences.of_prompts(adapted_pair.tokenizers[0], IDS.tolist())
    found, changes = adapted_pair.run("tuned", known, everything)
    silent = adapter.only([])
    donor = adapted_pair.sources["tuned"].mlps.weights()
    expected = adapted(hybrid(adapted_pair.models["base"], donor), silent)
    assert torch.allclose(found, logits(expected), atol=1e-5) and all(change.max() > 0 for change in changes)
    with pytest.raises(PairError, match="The base model has no transcoder adapters"):
        adapted_pair.width("base", "transcoder")


def test_the_pair_of_a_run_is_an_option_of_model_pair(pair, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = yaml.safe_load(pair_of_adapter(pair, Path("run")))["tuned"]["transcoders"]
    assert named == str(tmp_path / "run" / "dictionary")  # whatever folder it is read from, and before it is written
    adapter = run_folder(pair, tmp_path / "run")
    pair.stand_beside(adapter)
    (tmp_path / "run" / "pair.yaml").write_text(pair_of_adapter(pair, tmp_path / "run"))
    assert (tmp_path / "run" / "pair.yaml").read_text().startswith("# Choose it ")
    made = build(OmegaConf.load(tmp_path / "run" / "pair.yaml"))
    assert made.sources["base"] == pair.sources["tuned"] and made.sources["tuned"].mlps == pair.sources["base"]
    assert made.shares_weights("tuned") and made.hesitations == pair.hesitations
    assert torch.equal(logits(made.load().models["tuned"]), logits(pair.models[ADAPTER]))
    pair.stand_beside(adapter, on="tuned")
    made = build(OmegaConf.create(yaml.safe_load(pair_of_adapter(pair, tmp_path / "run")))).load()
    assert torch.equal(logits(made.models["tuned"]), logits(pair.models[ADAPTER]))
    own = parameters(made.models["tuned"], made.models["base"]) - parameters(made.models["base"])
    assert own == 4 * sum(p.numel() for p in adapter.parameters())


def test_low_rank_adapters_of_the_tuned_model_stay_in_its_attention(folders, tmp_path):
    low_rank = save_adapter(tmp_path / "lora", folders["base"])
    pair = ModelPair(source(folders["base"]), source(folders["base"], adapter=str(low_rank))).load()
    pair.stand_beside(run_folder(pair, tmp_path / "run"))
    made = build(OmegaConf.create(yaml.safe_load(pair_of_adapter(pair, tmp_path / "run")))).load()
    assert torch.equal(logits(made.models["tuned"]), logits(pair.models[ADAPTER]))
    with pytest.raises(PairError, match="has no adapters to read"):
        made.streams("lora", "all", reads="tuned")
    with pytest.raises(PairError, match="load it with merged=true"):
        save_adapted(pair.models[ADAPTER], tmp_path / "out")


def test_what_a_run_was_trained_on_is_said_where_it_stands_on_something_else(pair, folders, tmp_path):
    run_folder(pair, tmp_path / "run")
    trained = {"tuned": {"path": str(folders["tuned"])}, "base": {"path": "elsewhere/else"}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"model_pair": trained}))
    made = AdaptedSource(str(folders["tuned"]), mlps=source(folders["base"]), transcoders=str(tmp_path / "run"))
    assert "with the MLPs of elsewhere/else, and stand on" in made.remarks()[0]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"sparsity": {"_target_": "os.system"}}, "sparsity os.system, which is none of tunediff's own"),
        ({"sparsity": {"_target_": "tunediff.dictionary.Crosscoder"}}, "none of tunediff's own"),
        ({"decoder_bias": False}, "without a word of it in its config.json, layers.0.b_dec and 2 more"),
        ({"latents": 9}, r"layers.0.W_enc of shape \[32, 8\], and its config.json says \[32, 9\]"),
        ({"sparsity": SPARSITIES["topk"][1]}, "has no layers.0.sparsity.threshold and 2 more"),
    ],
)
def test_a_run_whose_files_do_not_fit_is_refused(pair, tmp_path, config, said):
    run_folder(pair, tmp_path)
    reconfigure(tmp_path / "dictionary", **config)
    with pytest.raises(Refused, match=said):
        TranscoderFiles(str(tmp_path)).read()


# -- the authors' format ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bias", "sharded"), [(True, False), (False, False), (True, True), (False, True)])
def test_a_checkpoint_in_the_authors_format_is_a_model_like_any_other(folders, tmp_path, bias, sharded, caplog):
    parts = checkpoint(folders, tmp_path / "model", bias=bias, sharded=sharded)
    made = source(tmp_path / "model")
    transformers.utils.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        model = made.weights()
    transformers.utils.logging.disable_propagation()
    assert caplog.records == []
    plain = Qwen2ForCausalLM.from_pretrained(folders["tuned"], dtype=torch.float32)
    assert torch.allclose(logits(model), by_hand(plain, parts), atol=1e-5)
    assert not torch.allclose(logits(model), logits(plain), atol=1e-2)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert made.size[0] == parameters(model) // 4
    pair = ModelPair(source(folders["base"]), made)
    assert pair.width("tuned", "transcoder") == LATENTS and not pair.shares_weights("tuned")


@pytest.mark.parametrize("sharded", [False, True])
def test_of_a_checkpoint_the_transcoders_alone_can_be_taken(folders, tmp_path, sharded):
    parts = checkpoint(folders, tmp_path / "model", sharded=sharded)
    made = AdaptedSource(
        str(folders["tuned"]),
        dtype="float32",
        mlps=source(folders["base"]),
        transcoders=str(tmp_path / "model"),
    )
    around = Qwen2ForCausalLM.from_pretrained(folders["tuned"], dtype=torch.float32)
    donor = Qwen2ForCausalLM.from_pretrained(folders["base"], dtype=torch.float32)
    for layer, theirs in zip(decoder_layers(around), decoder_layers(donor), strict=True):
        layer.mlp = theirs.mlp
    assert torch.allclose(logits(made.weights()), by_hand(around, parts), atol=1e-5)
    assert len(made.files()) == 2 + (2 if sharded else 1)  # of the tuned model, the base, the checkpoint
    wrong = dataclasses.replace(made, mlps=source(tmp_path / "model"))
    with pytest.raises(PairError, match="name the base they were trained on"):
        wrong.weights()


def test_a_checkpoint_of_the_hub_is_brought_file_by_file(folders, tmp_path, monkeypatch):
    parts = checkpoint(folders, tmp_path / "model", sharded=True)
    asked = []

    def bring(place, name, *, revision):
        asked.append((place, name, revision))
        if not (tmp_path / "model" / name).exists():
            raise FileNotFoundError(name)
        return str(tmp_path / "model" / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", bring)
    files = TranscoderFiles("somebody/adapters", "v1")
    assert files.latents == LATENTS and asked == [("somebody/adapters", "config.json", "v1")]
    read = files.read()
    assert torch.equal(read.layers[2].W_enc, parts["model.layers.2.mlp.transcoder_enc.weight"].T)
    assert {name for _, name, _ in asked if name.endswith(".safetensors")} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    with pytest.raises(
        PairError,
        match="'somebody/adapters' at v1: it is no local folder with nothing.json, and the Hub did not give it",
    ):
        files._file("nothing.json")


@pytest.mark.parametrize(
    ("settings", "config", "said"),
    [
        ({"layers": 2}, {}, r"has no layers.2.mlp.transcoder_enc.weight and 3 more"),
        (
            {},
            {"transcoder_n_features": 9},
            r"transcoder_enc.weight of shape \[8, 32\], and its config.json says \[9, 32\]",
        ),
        ({"bias": False}, {"transcoder_dec_bias": True}, "has no layers.0.mlp.transcoder_dec.bias and 2 more"),
        (
            {},
            {"transcoder_dec_bias": False},
            "without a word of it in its config.json, layers.0.mlp.transcoder_dec.bias",
        ),
    ],
)
def test_a_checkpoint_whose_tensors_do_not_fit_is_refused(folders, tmp_path, settings, config, said):
    checkpoint(folders, tmp_path / "model", **settings)
    reconfigure(tmp_path / "model", **config)
    with pytest.raises(PairError, match=said):
        source(tmp_path / "model").weights()


def test_a_checkpoint_that_lacks_tensors_of_its_own_is_refused(folders, tmp_path):
    checkpoint(folders, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    whole = safetensors.torch.load_file(path)
    for change, said in (("drop", "has no model.norm.weight"), ("add", "has an unknown tensor model.more")):
        some = {name: value for name, value in whole.items() if change == "add" or name != "model.norm.weight"}
        some |= {"model.more": torch.zeros(2)} if change == "add" else {}
        safetensors.torch.save_file(some, path, metadata={"format": "pt"})
        with pytest.raises(PairError, match=said):
            source(tmp_path / "model").weights()


def test_only_safetensors_are_read(folders, tmp_path):
    checkpoint(folders, tmp_path / "model")
    weights = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    torch.save(weights, tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(PairError, match="has no model.safetensors: only safetensors are read"):
        TranscoderFiles(str(tmp_path / "model")).read()
    with pytest.raises(PairError, match="pytorch_model.bin alone, and only safetensors are read"):
        source(tmp_path / "model").weights()
    with pytest.raises(PairError, match="has no transcoder adapters: name a run that trained"):
        _ = TranscoderFiles(str(folders["base"])).latents


def test_what_cannot_be_done_with_a_checkpoint_is_refused(folders, tmp_path):
    checkpoint(folders, tmp_path / "model")
    with pytest.raises(PairError, match="no low-rank one is put on them"):
        source(tmp_path / "model", adapter=str(tmp_path)).weights()
    with pytest.raises(Refused, match="beside which nothing is fine-tuned"):
        check_adapter(source(tmp_path / "model"), None)


def test_vllm_is_not_given_an_adapted_model(folders, tmp_path, adapted_pair, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm", object())
    checkpoint(folders, tmp_path / "model")
    tokenizer = adapted_pair.tokenizers[0]
    for pair in (adapted_pair, ModelPair(source(folders["base"]), source(tmp_path / "model"))):
        with pytest.raises(Refused, match="a model with transcoder adapters needs engine"):
            next(VLLM().respond(Request(pair, "tuned", [], Decoding(), (), tokenizer, None)))


# -- saved in that format --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shard", ["50GB", "60KB"])
def test_a_saved_model_is_loaded_back_to_equal_logits(pair, tmp_path, bias, shard):
    pair.stand_beside(made_adapter(pair, L1(0.1), bias=bias))
    expected = logits(pair.models[ADAPTER])
    place = save_adapted(pair.models[ADAPTER], tmp_path / "out", pair.tokenizer_of(ADAPTER), shard=shard)
    assert (place / "model.safetensors.index.json").exists() == (shard == "60KB")
    config = json.loads((place / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLMWithTranscoder"] and config["model_type"] == "qwen2"
    assert (config["transcoder_n_features"], config["transcoder_dec_bias"]) == (LATENTS, bias)
    assert torch.equal(logits(source(place).weights()), expected)
    assert torch.equal(logits(pair.models[ADAPTER]), expected) and not hasattr(
        pair.models["tuned"].config, "transcoder_n_features"
    )
    again = ModelPair(source(place), source(place))
    assert len(again.tokenizers[0]) == len(pair.tokenizers[0])
    with pytest.raises(PairError, match="is not empty: name a new folder"):
        save_adapted(pair.models[ADAPTER], place)


def test_a_model_is_saved_in_the_precision_of_its_weights(pair, folders, tmp_path):
    run_folder(pair, tmp_path / "run")
    made = AdaptedSource(str(folders["tuned"]), mlps=source(folders["base"]), transcoders=str(tmp_path / "run"))
    model = made.weights()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    place = save_adapted(model, tmp_path / "out")
    kept = safetensors.torch.load_file(place / "model.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.bfloat16}
    assert torch.equal(logits(ModelSource(str(place)).weights()), logits(model))


def test_tied_embeddings_are_saved_once_and_stay_tied(tokenizer, tmp_path):
    places = [save_model(tmp_path / name, tokenizer, seed=seed) for seed, name in enumerate(("one", "two"))]
    for place in places:
        reconfigure(place, tie_word_embeddings=True)
        own = safetensors.torch.load_file(place / "model.safetensors")
        del own["lm_head.weight"]
        safetensors.torch.save_file(own, place / "model.safetensors", metadata={"format": "pt"})
    pair = ModelPair(*map(source, places)).load()
    pair.stand_beside(made_adapter(pair, L1(0.1)))
    kept = save_adapted(pair.models[ADAPTER], tmp_path / "out", pair.tokenizer_of(ADAPTER))
    assert "lm_head.weight" not in safetensors.torch.load_file(kept / "model.safetensors")
    assert torch.equal(logits(source(kept).weights()), logits(pair.models[ADAPTER]))


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_latents_that_are_not_relus_are_refused(pair, tmp_path, kind):
    pair.stand_beside(made_adapter(pair, SPARSITIES[kind][0]))
    with pytest.raises(PairError, match=f"has ReLU latents, and this adapter has {type(SPARSITIES[kind][0]).__name__}"):
        save_adapted(pair.models[ADAPTER], tmp_path / "out")
    with pytest.raises(PairError, match="has no transcoder adapters beside its MLPs"):
        save_adapted(pair.models["hybrid"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def finished_run(folder, pair, folders, **dictionary):
    """A run folder with as much of a config as loading it takes."""
    nodes = {
        role: {"_target_": "tunediff.models.ModelSource", "path": str(folders[role])} for role in ("base", "tuned")
    }
    nodes = {role: node | {"dtype": "float32"} for role, node in nodes.items()}
    given = {
        "_target_": "tunediff.dictionary.TranscoderAdapter",
        "_partial_": True,
        "reads": ADAPTER,
        "hookpoint": {"name": "mlp_in", "equal_widths": True},
        **dictionary,
    }
    rows = {"_target_": "tunediff.toy.language.rows", "_partial_": True, "seed": 0, "kind": "trace"}
    config = {"model_pair": {"_target_": "tunediff.models.ModelPair", **nodes}, "dictionary": given, "layer": "all"}
    config |= {"text": {"_target_": "tunediff.text.Text", "rows": rows}, "budget": {"evaluation_tokens": 9}}
    config |= {"l1_schedule": {}, "optimizer": {}, "activations": {}, "hydra": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return tunediff.load(folder)


def test_a_run_saves_its_adapted_model(pair, folders, tmp_path):
    adapter = run_folder(pair, tmp_path)
    node = {"_target_": "tunediff.dictionary.TranscoderAdapter", "_partial_": True, "latents": LATENTS}
    run = finished_run(tmp_path, pair, folders, **node, sparsity=SPARSITIES["l1"][1])
    pair.stand_beside(adapter)
    assert torch.equal(logits(source(run.save_adapted(tmp_path / "out")).weights()), logits(pair.models[ADAPTER]))


def test_a_run_of_another_dictionary_has_no_adapted_model_to_save(pair, folders, tmp_path):
    run_folder(pair, tmp_path)
    run = finished_run(tmp_path, pair, folders)
    run.dictionary = None
    with pytest.raises(Refused, match="trained no transcoder adapters"):
        run.save_adapted(tmp_path / "out")


# -- wherever a file has its tensors ---------------------------------------------------------------------------------


def shift(folder, padding):
    """The same tensors, each so many bytes further into its file; how far from a multiple of 64 they then lie."""
    places = set()
    for path in sorted(folder.rglob("*.safetensors")):
        content = path.read_bytes()
        length = 8 + int.from_bytes(content[:8], "little")
        header = content[8:length].rstrip() + b" " * (padding + -len(content[8:length].rstrip()) % 8)
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[length:])
        starts = [value["data_offsets"][0] for name, value in json.loads(header).items() if name != "__metadata__"]
        places |= {(8 + len(header) + start) % 64 for start in starts}
    return places


@pytest.mark.parametrize("kind", ["plain", "tied", "lora", "run", "checkpoint"])
def test_logits_do_not_depend_on_where_a_file_has_its_tensors(pair, folders, tmp_path, kind):
    place, settings = tmp_path / "model", {}
    if kind == "checkpoint":
        checkpoint(folders, place)
    else:
        shutil.copytree(folders["tuned"], place)
    if kind == "tied":
        reconfigure(place, tie_word_embeddings=True)
        own = safetensors.torch.load_file(place / "model.safetensors")
        del own["lm_head.weight"]
        safetensors.torch.save_file(own, place / "model.safetensors", metadata={"format": "pt"})
    if kind == "lora":
        settings["adapter"] = str(save_adapter(tmp_path / "lora", place, rank=3))
    if kind == "run":
        run_folder(pair, tmp_path / "run")
    made = source(place, **settings)
    if kind == "run":
        made = AdaptedSource(str(place), dtype="float32", mlps=made, transcoders=str(tmp_path / "run"))
    found, places = [], set()
    for padding in range(0, 64, 8):
        places |= shift(tmp_path, padding)
        model = made.weights()
        for tensor in (*model.parameters(), *model.buffers()):
            assert tensor.data_ptr() % 64 == 0 and tensor.is_contiguous()
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == (kind == "tied")
        found.append(logits(model))
    assert places >= set(range(0, 64, 8)) and all(torch.equal(one, found[0]) for one in found)


# -- the published pair ----------------------------------------------------------------------------------------------


def test_the_published_adapters_are_a_pair_over_one_set_of_weights():
    node = OmegaConf.load(ROOT / "conf" / "model_pair" / "adapter_vs_r1.yaml")
    base, tuned = build(node.base), build(node.tuned)
    assert isinstance(tuned, AdaptedSource) and tuned.backbone == base == tuned.without_adapter
    assert tuned.mlps.path == "Qwen/Qwen2.5-Math-7B" and tuned.name.endswith("l0-1.4")
