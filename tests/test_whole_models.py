"""Models that are not whole, and files that are no model: each refused in one sentence before a weight is read, and as
transformers finds them when it is."""

import json
import shutil

import huggingface_hub
import hydra
import pytest
import safetensors.torch
import torch
import transformers as hf

from conftest import ROOT, save_model
from real_tokenizers import MADE, real
from test_adapted_models import checkpoint
from test_lora import save_adapter
from test_models import FAMILIES, GROUPED
from test_sweep import composed
from tunediff import folders as run_folders
from tunediff.models import ModelPair, ModelSource, PairError, option
from tunediff.models.whole import foreseen, found_by, silent
from tunediff.shapes import ROLES, Refused
from tunediff.study.finetune import finetune
from tunediff.study.finished import Loaded
from tunediff.study.train import study
from tunediff.sweep.plan import members_in

MOE = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
KINDS = {
    **FAMILIES,
    "phi3": (hf.Phi3Config, hf.Phi3ForCausalLM, GROUPED),
    "mixtral": (hf.MixtralConfig, hf.MixtralForCausalLM, {**GROUPED, "num_local_experts": 3}),
    "qwen3_moe": (hf.Qwen3MoeConfig, hf.Qwen3MoeForCausalLM, MOE),
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3087467144\n"


def tensors(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def save(folder, state):
    state = {name: value.clone() for name, value in state.items()}
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def settings(folder, **changes):
    file = folder / "config.json"
    kept = {key: value for key, value in {**json.loads(file.read_text()), **changes}.items() if value is not ...}
    file.write_text(json.dumps(kept))


def number(name):
    """The layer of a tensor; -1 of one that is in none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), -1)


def renumbered(name, n):
    parts = name.split(".")
    parts[next(i for i, part in enumerate(parts) if part.isdigit())] = str(n)
    return ".".join(parts)


# each a change of the tensors of a folder
def dropped(state):
    return {name: value for name, value in state.items() if name != next(iter(in_layer(state, 1)))}


def in_layer(state, n):
    return {name: value for name, value in state.items() if number(name) == n}


def added(state):
    return {**state, next(iter(in_layer(state, 1))).rpartition(".")[0] + ".more": torch.zeros(3)}


def reshaped(state):
    name = next(iter(in_layer(state, 1)))
    return {**state, name: torch.zeros(*(size + 1 for size in state[name].shape))}


def a_layer_less(state):
    return {name: value for name, value in state.items() if number(name) != 2}


def a_middle_layer_less(state):
    return {name: value for name, value in state.items() if number(name) != 1}


def a_layer_more(state):
    return {**state, **{renumbered(name, 3): value for name, value in in_layer(state, 2).items()}}


def wrapped(prefix):
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


def bare(state):
    """As a base model saves itself, with an old buffer among its tensors."""
    short = {
        name.partition(".")[2] if name.startswith(("model.", "transformer.")) else name: state[name] for name in state
    }
    return {**short, "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}


CHANGES = (
    dict, dropped, added, reshaped, a_layer_less, a_middle_layer_less, a_layer_more, wrapped("module."), wrapped("_orig_mod."), bare,
)  # fmt: skip


def loaded(folder):
    """What transformers says once it has loaded the weights; None where it does not come so far."""
    options = {"ignore_mismatched_sizes": True, "output_loading_info": True, "use_safetensors": True}
    with silent():
        try:
            return found_by(hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)[1])
        except RuntimeError:
            return None


def agree(folder, found):
    """True where the headers foretell what loading finds."""
    source = ModelSource(str(folder), dtype="float32")
    early, late = foreseen(source.empty, source._headers()), loaded(folder)
    assert (early.broken is not None) if late is None else (early == late)
    found.append(early)
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_the_headers_foretell_what_loading_finds_in_every_family(kind, tmp_path):
    torch.manual_seed(0)
    config, model, given = KINDS[kind]
    model(config(**given)).save_pretrained(tmp_path)
    state, found = tensors(tmp_path), []
    for change in CHANGES:
        save(tmp_path, change(state))
        assert agree(tmp_path, found), change
    whole = [not (one.broken or one.missing or one.unexpected or one.misshapen) for one in found]
    assert whole[0] and not any(whole[1:9])  # an old buffer is refused where the architecture never had one
    for words, at in (
        ("has no", 1),
        ("unknown tensor", 2),
        (r"of shape \[", 3),
        ("hold 2 layers", 4),
        ("hold 4 layers", 6),
    ):
        save(tmp_path, CHANGES[at](state))
        with pytest.raises(PairError, match=words):
            ModelSource(str(tmp_path)).check()


@pytest.mark.parametrize("name", MADE)
def test_the_models_with_real_tokenizers_are_whole(name):
    folder = real(name)
    ModelSource(str(folder)).check()
    assert agree(folder, [])


@pytest.mark.parametrize("more", [-1, 1])
@pytest.mark.parametrize("name", MADE)
def test_a_layer_too_few_or_too_many_is_told_in_numbers_whatever_config_lists(name, more, tmp_path):
    """Newer files list the kind of each layer, which transformers checks before anything else."""
    said = json.loads((real(name) / "config.json").read_text())
    depth = said["num_hidden_layers"]
    (tmp_path / "config.json").write_text(json.dumps({**said, "num_hidden_layers": depth + more}))
    (tmp_path / "model.safetensors").symlink_to((real(name) / "model.safetensors").resolve())
    there = rf"there is model\.layers\.{depth - 1}\." if more < 0 else rf"there is no model\.layers\.{depth}\."
    words = rf"num_hidden_layers={depth + more}, and the files hold {depth} layers: {there}"
    with pytest.raises(PairError, match=words):
        ModelSource(str(tmp_path)).check()


@pytest.mark.parametrize("role", ["base", "tuned", "lora"])
def test_the_embedded_models_are_whole(role):
    more = {"adapter": "pkg://tunediff.toy/weights/lora"} if role == "lora" else {}
    place = "base" if role == "lora" else role
    ModelSource(f"pkg://tunediff.toy/weights/{place}", **more).check()


# -- each in a sentence ------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(folders, tmp_path):
    """A folder that may be broken."""
    return shutil.copytree(folders["base"], tmp_path / "broken")


def change(which):
    return lambda folder: save(folder, which(tensors(folder)))


def rewritten(name, content):
    return lambda folder: (folder / name).write_text(content)


def config(**changes):
    return lambda folder: settings(folder, **changes)


def shards(folder):
    hf.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink()
    return sorted(folder.glob("model-*.safetensors"))


def without_a_shard(folder):
    shards(folder)[1].unlink()


def a_foreign_head(folder):
    settings(folder, tie_word_embeddings=True)


def no_head(folder):
    save(folder, {name: value for name, value in tensors(folder).items() if name != "lm_head.weight"})


def cut_off(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def pickled(folder):
    torch.save(tensors(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def in_eight_bits(folder):
    state = tensors(folder)
    name = "model.layers.0.mlp.up_proj.weight"
    save(folder, {**state, name: state[name].to(torch.float8_e4m3fn)})


def a_bias_in_eight_bits(folder):
    state = tensors(folder)
    name = "model.layers.0.self_attn.q_proj.bias"
    save(folder, {**state, name: state[name].to(torch.int8)})


def tied_in_nan(folder):
    """Tied, and both copies hold NaN at one place: equal bytes, of numbers that equal nothing."""
    tied_twice(folder)
    state = tensors(folder)
    embeddings = state["model.embed_tokens.weight"]
    embeddings[5, 3] = torch.nan
    save(folder, {**state, "lm_head.weight": embeddings})


def indexed(change):
    """Shards whose index was changed."""

    def harm(folder):
        shards(folder)
        file = folder / "model.safetensors.index.json"
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return harm


def pickled_in_shards(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model-00001-of-00001.bin")
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {}}')


def the_index_of_pickles(folder):
    pickled_in_shards(folder)
    (folder / "pytorch_model-00001-of-00001.bin").unlink()


def without_a_splitter(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, "model": None}))


def a_list_for_a_token(folder):
    content = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**content, "eos_token": ["a"]}))


def decoded(**named):
    return rewritten("generation_config.json", json.dumps(named))


def packed(folder):
    state = tensors(folder)
    name = "model.layers.0.mlp.up_proj"
    save(folder, {**state, f"{name}.qweight": torch.zeros(4, 4, dtype=torch.int32)})


def both(folder):
    (folder / "adapter_config.json").write_text("{}")


def adapter_alone(folder):
    both(folder)
    (folder / "config.json").unlink()


LISTED = ["full_attention"] * 3
TENSOR = r"model\.layers\.\d\.[a-z_.]+"
CASES = {
    "missing": (change(dropped), rf"has no {TENSOR}: its files are not whole"),
    "middle layer": (change(a_middle_layer_less), r"has no model\.layers\.1\.[a-z_.]+ and 11 more: its files are not whole"),
    "unknown": (change(added), rf"has an unknown tensor {TENSOR}more, for which Qwen2ForCausalLM has no place"),
    "misshapen": (change(reshaped), rf"has {TENSOR} of shape \[33\], and its config.json says \[32\]"),
    "width": (config(intermediate_size=48), r"down_proj.weight of shape \[32, 64\], and its config.json says \[32, 48\]"),
    "module": (change(wrapped("module.")), r"has module\.\S+: the prefix module\. comes from DistributedDataParallel or DeepSpeed"),
    "compiled": (change(wrapped("_orig_mod.")), r"the prefix _orig_mod\. comes from torch\.compile.*without the prefix"),
    "both wrappers": (change(wrapped("module._orig_mod.")), r"the prefix module\. comes from"),
    "layer less": (change(a_layer_less), r"num_hidden_layers=3, and the files hold 2 layers: there is no model\.layers\.2\."),
    "layer more": (change(a_layer_more), r"num_hidden_layers=3, and the files hold 4 layers: there is model\.layers\.3\."),
    "tied": (a_foreign_head, r"has a lm_head.weight that differs from its model.embed_tokens.weight.*set it to false"),
    "untied": (no_head, r"has no lm_head.weight, and its config.json says tie_word_embeddings=false: set it to true"),
    "shard": (without_a_shard, r"has no model-00002-of-\d+.safetensors, which model.safetensors.index.json names, 1 of \d+ files"),
    "pickle": (pickled, r"as pytorch_model.bin alone, and only safetensors are read: .*save_pretrained"),
    "empty": (lambda folder: (folder / "model.safetensors").unlink(), r"has no weights: neither model.safetensors nor"),
    "renamed": (lambda f: (f / "model.safetensors").rename(f / "consolidated.safetensors"), r"does not read consolidated"),
    "no JSON": (rewritten("config.json", '{"model_type": '), r"config.json is not JSON \(.*download or save it again"),
    "list": (rewritten("config.json", "[]"), r"config.json holds a list where settings belong"),
    "no type": (config(model_type=...), r"config.json has no model_type, by which transformers knows an architecture"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"has no config.json: name the folder of a model"),
    "cut off": (cut_off, r"model.safetensors \([\d,]+ bytes\) is cut off, or no safetensors"),
    "nothing in it": (rewritten("model.safetensors", ""), r"model.safetensors \(0 bytes\) is cut off, or no safetensors"),
    "pointer": (rewritten("model.safetensors", POINTER), r"model.safetensors is a pointer of git-LFS.*git lfs pull"),
    "tokenizer": (rewritten("tokenizer.json", POINTER), r"tokenizer.json is a pointer of git-LFS.*git lfs pull"),
    "gptq": (config(quantization_config={"quant_method": "gptq", "bits": 4}), r"quantised \(gptq\).*quantised from"),
    "awq": (config(quantization_config={"quant_method": "awq"}), r"is quantised \(awq\)"),
    "fp8": (config(quantization_config={"quant_method": "fp8"}), r"is quantised \(fp8\)"),
    "4 bits": (config(quantization_config={"load_in_4bit": True}), r"is quantised \(bitsandbytes, 4 bits\)"),
    "8 bits in it": (in_eight_bits, r"is quantised: it has model.layers.0.mlp.up_proj.weight, stored as F8_E4M3"),
    "packed": (packed, r"is quantised: it has model.layers.0.mlp.up_proj.qweight, stored as I32"),
    "unknown kind": (config(model_type="mambo"), r"model_type=mambo, which transformers [\d.]+ does not know"),
    "own code": (
        config(model_type="mambo", auto_map={"AutoModelForCausalLM": "modeling_mambo.Mambo"}),
        r"computed by code of its own, modeling_mambo.Mambo, and no code that came with a model is run here",
    ),
    "pictures": (config(model_type="vit"), r"model_type=vit, of which transformers has no causal language model"),
    "words": (config(num_hidden_layers="three"), r"cannot read its config.json: .*num_hidden_layers.*'three'"),
    "width in words": (config(hidden_size="32"), r"cannot read its config.json: .*'hidden_size'.* got str \(value: '32'\)"),
    "epsilon": (config(rms_norm_eps="1e-6"), r"cannot read its config.json: .*'rms_norm_eps' expected float, got str"),
    "positions": (config(max_position_embeddings=None), r"config.json: .*'max_position_embeddings' expected int, got None"),
    "kinds": (config(layer_types=["full_attention"]), r"config.json: .*num_hidden_layers` \(3\) must .*layer_types` \(1\)"),
    "fewer layers, listed": (config(num_hidden_layers=2, layer_types=LISTED), r"=2, and the files hold 3 layers: there is model"),
    "more layers, listed": (config(num_hidden_layers=4, layer_types=LISTED), r"=4, and the files hold 3 layers: there is no m"),
    "no layers, listed": (config(num_hidden_layers=0, layer_types=LISTED), r"=0, and the files hold 3 layers: there is model"),
    "no layers": (config(num_hidden_layers=0), r"=0, and the files hold 3 layers: there is model\.layers\.0\."),
    "no heads": (config(num_attention_heads=0), r"transformers cannot build what its config.json says: .*by zero"),
    "no method": (config(quantization_config={}), r"config.json says quantization_config=\{\}, which names no method: take it"),
    "pointer of settings": (rewritten("config.json", POINTER), r": config.json is a pointer of git-LFS.*`hf download`\.$"),
    "brackets": (rewritten("config.json", "[" * 100_000), r"config.json is not JSON \(maximum recursion"),
    "bias in 8 bits": (a_bias_in_eight_bits, r"quantised: it has model.layers.0.self_attn.q_proj.bias, stored as I8\."),
    "NaN": (tied_in_nan, r"has NaN in (lm_head|model.embed_tokens).weight"),
    "names no shard": (indexed(lambda index: {**index, "weight_map": {}}), r"index.json has no weight_map that names the files"),
    "empty index": (indexed(lambda index: {}), r"index.json has no weight_map that names the files of its tensors"),
    "numbers for shards": (indexed(lambda index: {**index, "weight_map": {"a": 1}}), r"index.json has no weight_map that names"),
    "no metadata": (indexed(lambda index: {"weight_map": index["weight_map"]}), r"index.json has no metadata"),
    "index alone": (the_index_of_pickles, r"as the .bin files of pytorch_model.bin.index.json alone, and only safetensors"),
    "pickled shards": (pickled_in_shards, r"as pytorch_model-00001-of-00001.bin alone, and only safetensors are read"),
    "another name": (config(transformers_weights="gone.safetensors"), r"has no gone.safetensors, which its config.json names"),
    "empty tokenizer": (rewritten("tokenizer.json", "{}"), r"cannot read its tokenizer.json: Model missing"),
    "no model in it": (without_a_splitter, r"cannot read its tokenizer.json: data did not match"),
    "list for a token": (a_list_for_a_token, r"cannot read its tokenizer_config.json: Special token eos_token"),
    "decoding list": (rewritten("generation_config.json", "[]"), r"generation_config.json holds a list where settings belong"),
    "decoding broken": (rewritten("generation_config.json", "{"), r"generation_config.json is not JSON"),
    "end": (decoded(eos_token_id="x"), r'generation_config.json says eos_token_id="x", which must be a token id or a list'),
    "temperature": (decoded(temperature=-5), r"generation_config.json says temperature=-5, which must be a number of 0 or more"),
    "budget": (decoded(max_new_tokens="x"), r"transformers cannot read its generation_config.json: "),
    "adapter": (adapter_alone, r"holds an adapter and no model: name what it was made on as path"),
    "adapter beside": (both, r"holds an adapter beside its model"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_whole_model_is_refused_in_one_sentence_before_a_weight_is_read(case, broken, folders, monkeypatch):
    harm, words = CASES[case]
    harm(broken)

    def read(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr(hf.AutoModelForCausalLM, "from_pretrained", read)
    sources = [ModelSource(str(place), dtype="float32") for place in (folders["base"], broken)]
    with pytest.raises(PairError, match=words) as refusal:
        ModelPair(*sources)
    assert str(broken) in str(refusal.value) and "\n" not in str(refusal.value)


LOADED = "missing, middle layer, unknown, misshapen, width, module, layer less, layer more, tied, untied, 8 bits in it"


@pytest.mark.parametrize("case", LOADED.split(", "))
def test_it_is_refused_by_what_loading_finds_as_well(case, broken, monkeypatch):
    harm, words = CASES[case]
    harm(broken)
    monkeypatch.setattr(ModelSource, "check", lambda self: None)  # as where the files came with the weights
    with pytest.raises(PairError, match=words):
        ModelSource(str(broken), dtype="float32").weights()


def test_an_expert_that_lacks_a_tensor_is_named(tmp_path):
    config, model, given = KINDS["qwen3_moe"]
    model(config(**given)).save_pretrained(tmp_path)
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    save(tmp_path, {key: value for key, value in tensors(tmp_path).items() if key != name})
    with pytest.raises(PairError, match=f"{tmp_path} has no {name}, as its siblings are there. "):
        ModelSource(str(tmp_path)).check()


def test_an_expert_of_another_shape_is_named(tmp_path):
    config, model, given = KINDS["mixtral"]
    model(config(**given)).save_pretrained(tmp_path)
    state = tensors(tmp_path)
    name = sorted(name for name in state if ".experts.1." in name)[0]
    save(tmp_path, {**state, name: torch.zeros(5, 5)})
    with pytest.raises(PairError, match=rf"{tmp_path} has {name} of shape \[5, 5\], and its siblings are"):
        ModelSource(str(tmp_path)).check()


def test_a_precision_that_is_none_is_answered_with_those_there_are(folders):
    with pytest.raises(PairError, match="dtype='auto' of .*choose one of float32, bfloat16, float16"):
        ModelSource(str(folders["base"]), dtype="auto")


def test_files_of_an_adapter_that_are_not_whole_are_refused(folders, tmp_path):
    place = save_adapter(tmp_path / "adapter", folders["base"])
    whole = (place / "adapter_model.safetensors").read_bytes()
    for content, words in (
        (whole[:-9], "is cut off, or no safetensors"),
        (POINTER.encode(), "is a pointer of git-LFS"),
    ):
        (place / "adapter_model.safetensors").write_bytes(content)
        with pytest.raises(PairError, match=f"The adapter .*adapter_model.safetensors .*{words}"):
            ModelSource(str(folders["base"]), adapter=str(place)).check()


# -- what is whole, however it was saved -------------------------------------------------------------------------------


def logits(source):
    with torch.no_grad():
        return source.weights()(torch.arange(3, 20)[None]).logits


def old_buffers(folder):
    rotary = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(3)}
    save(folder, {**tensors(folder), **rotary})


def tied_twice(folder):
    """Tied, and the head saved as well: equal to the embeddings."""
    state = tensors(folder)
    settings(folder, tie_word_embeddings=True)
    save(folder, {**state, "lm_head.weight": state["model.embed_tokens.weight"]})


def tied_once(folder):
    tied_twice(folder)
    no_head(folder)


def of_the_base(folder):
    """Saved from the base model, without the prefix and without a head."""
    tied_once(folder)
    save(folder, {name.removeprefix("model."): value for name, value in tensors(folder).items()})


def in_double(folder):
    save(folder, {name: value.double() for name, value in tensors(folder).items()})


@pytest.mark.parametrize("saved", [old_buffers, tied_twice, tied_once, of_the_base, shards, in_double])
def test_a_whole_model_is_read_however_it_was_saved(saved, broken, folders):
    want = ModelSource(str(folders["base"]), dtype="float32")
    if saved in (tied_twice, tied_once, of_the_base):
        tied_twice(broken)
        reference = hf.Qwen2ForCausalLM.from_pretrained(broken).eval()
        with torch.no_grad():
            want = reference(torch.arange(3, 20)[None]).logits
    else:
        want = logits(want)
    saved(broken)
    source = ModelSource(str(broken), dtype="float32")
    source.check()
    assert torch.equal(logits(source), want)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8).bool()}),
        ("neox", {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8).bool()}),
        ("neox", {"gpt_neox.layers.1.attention.masked_bias": torch.tensor(-1e9)}),
        ("neox", {"gpt_neox.layers.1.attention.rotary_emb.inv_freq": torch.ones(2)}),
    ],
)
def test_masks_and_frequencies_that_older_files_hold_are_no_unknown_tensors(kind, names, tmp_path):
    config, model, given = KINDS[kind]
    model(config(**given)).save_pretrained(tmp_path)
    save(tmp_path, {**tensors(tmp_path), **names})
    ModelSource(str(tmp_path)).weights()


# -- a study says so before it begins ----------------------------------------------------------------------------------


def test_a_dry_run_and_the_check_of_a_sweep_say_it(broken, folders, tmp_path):
    CASES["layer less"][0](broken)
    good, bad = ([f"model_pair.base.path={p}", f"model_pair.tuned.path={p}"] for p in (folders["base"], broken))
    with pytest.raises(Refused, match="the files hold 2 layers"):
        study(composed(*bad, "dry_run=true"), tmp_path / "run")
    with pytest.raises(Refused, match="model_pair.tuned.path=.*: .*the files hold 2 layers"):
        members_in(tmp_path / "sweep", [(words, composed(*words, "layer=1")) for words in (good, bad)])
    assert not (tmp_path / "run").exists() and not (tmp_path / "sweep").exists()


def test_a_dry_run_says_what_is_wrong_with_transcoder_adapters(folders, tmp_path):
    checkpoint(folders, tmp_path / "adapters", layers=2)
    checkpoint(folders, tmp_path / "whole")
    ModelSource(str(tmp_path / "whole")).check()
    said = "has no layers.2.mlp.transcoder_enc.weight and 3 more"
    cfg = composed("model_pair=local", *(f"model_pair.{role}.path={folders['base']}" for role in ROLES), "dry_run=true")
    more = {"_target_": "tunediff.models.AdaptedSource", "mlps": cfg.model_pair.base}
    cfg.model_pair.tuned = {**cfg.model_pair.tuned, **more, "transcoders": str(tmp_path / "adapters")}
    with pytest.raises(Refused, match=said):
        study(cfg, tmp_path / "run")
    with pytest.raises(PairError, match=said):
        ModelSource(str(tmp_path / "adapters")).check()


def test_a_fine_tune_says_it_before_it_reads_a_text(broken, tmp_path):
    CASES["module"][0](broken)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = hydra.compose("finetune", ["recipe=sft_toy", "model=local", f"model.path={broken}", "dry_run=true"])
    with pytest.raises(Refused, match="the prefix module. comes from"):
        finetune(cfg, tmp_path / "run")


# -- commits ----------------------------------------------------------------------------------------------------------

COMMITS = {"someone/base": "1" * 40, "someone/tuned": "2" * 40}


@pytest.fixture
def hub(folders, tmp_path, monkeypatch):
    """A cache as huggingface_hub keeps it, with two models; nothing can be asked of the Hub."""
    cache = tmp_path / "hub"
    for (name, commit), role in zip(COMMITS.items(), ("base", "tuned"), strict=True):
        place = cache / f"models--{name.replace('/', '--')}"
        shutil.copytree(folders[role], place / "snapshots" / commit)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def test_the_commit_of_every_model_of_the_hub_is_known_and_none_of_a_folder(hub, folders):
    for name, commit in COMMITS.items():
        source = ModelSource(name, revision="main", dtype="float32")
        assert source.commit == commit and source.commits == {f"{name}@main": commit}
        assert torch.equal(logits(source), logits(ModelSource(str(source.folder), dtype="float32")))
    local = ModelSource(str(folders["base"]))
    assert local.commit is None and local.commits == {}
    assert ModelSource(str(source.folder)).commit is None  # a folder, wherever it is


def test_all_files_of_a_model_are_read_at_the_commit_of_its_configuration(hub, tokenizer):
    source = ModelSource("someone/base", dtype="float32")
    before = source.commit
    place = hub / "models--someone--base"
    save_model(place / "snapshots" / ("3" * 40), tokenizer, seed=9)
    (place / "refs" / "main").write_text("3" * 40)  # the branch moves on
    old = ModelSource(str(place / "snapshots" / before), dtype="float32")
    assert torch.equal(logits(source), logits(old))
    assert not torch.equal(logits(ModelSource("someone/base", dtype="float32")), logits(old))


def test_weights_that_are_not_here_yet_are_checked_once_they_are(hub):
    place = hub / "models--someone--tuned" / "snapshots" / COMMITS["someone/tuned"]
    save(place, a_layer_less(tensors(place)))
    (place / "model.safetensors").rename(hub / "later")
    source = ModelSource("someone/tuned", dtype="float32")
    source.check()
    (hub / "later").rename(place / "model.safetensors")
    with pytest.raises(
        PairError, match="someone/tuned: config.json says num_hidden_layers=3, and the files hold 2 layers"
    ):
        source.weights()


def test_a_model_of_the_hub_that_has_no_safetensors_is_refused(hub):
    place = hub / "models--someone--tuned"
    (place / "snapshots" / COMMITS["someone/tuned"] / "model.safetensors").unlink()
    unknown = place / ".no_exist" / COMMITS["someone/tuned"]
    unknown.mkdir(parents=True)
    for name in ("model.safetensors", "model.safetensors.index.json"):
        (unknown / name).touch()
    with pytest.raises(PairError, match="someone/tuned has no weights: neither model.safetensors nor"):
        ModelSource("someone/tuned").check()


def test_a_run_records_the_commits_and_is_measured_again_at_them(hub, tmp_path, tokenizer):
    run = tmp_path / "run"
    words = ["model_pair.base.path=someone/base", "model_pair.tuned.path=someone/tuned", "evaluation=geometry"]
    study(composed(*words, "dictionary.latents=16", "layer=1"), run)
    written = run_folders.read_json(run / "findings.json")
    assert written["commits"] == {f"{name}@main": commit for name, commit in COMMITS.items()}
    assert f"someone/base@main {'1' * 40}" in written["study"]["commits"]
    assert "1" * 40 in (run / "report.html").read_text()
    place = hub / "models--someone--base"
    save_model(place / "snapshots" / ("3" * 40), tokenizer, seed=9)
    (place / "refs" / "main").write_text("3" * 40)
    assert ModelSource("someone/base").commit == "3" * 40
    assert Loaded(run).pair.sources["base"].commit == "1" * 40


def test_a_pair_that_is_written_down_names_the_commit(hub, folders):
    text = option("now.", ModelSource("someone/base", revision="main"), ModelSource(str(folders["tuned"])))
    assert f"revision: '{'1' * 40}'" in text and "revision: null" in text
