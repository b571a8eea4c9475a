"""Folders that stand for the models of every shipped pair, of their real shapes and with the tokenizers of real models, and
files of planted rows that stand for the texts of the Hub: what a dry run is asked with, without a network.

Weights are files with holes, which take no disk. The tokenizers are those of real_tokenizers.py.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from conftest import save_stand_in
from real_tokenizers import real

QWEN = {"architecture": "Qwen2", "num_key_value_heads": 8}
SHAPES = {
    "0.5b": QWEN | {"num_hidden_layers": 24, "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16}
    | {"num_key_value_heads": 16, "vocab_size": 151_936},
    "0.5b_instruct": QWEN | {"num_hidden_layers": 24, "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14}
    | {"num_key_value_heads": 2, "vocab_size": 151_936},
    "1b": {"architecture": "Llama", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256},
    "1.5b": QWEN | {"num_hidden_layers": 28, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12}
    | {"num_key_value_heads": 2, "vocab_size": 151_936},
    "7b": QWEN | {"num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28}
    | {"num_key_value_heads": 4, "vocab_size": 152_064},
    "32b": QWEN | {"num_hidden_layers": 64, "hidden_size": 5120, "intermediate_size": 27648, "num_attention_heads": 40}
    | {"vocab_size": 152_064},
    "8b": {"architecture": "Llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256},
}  # fmt: skip
# model -> its shape, whose tokenizer, its positions, and whether its embeddings are its unembeddings
MODELS = {
    "Qwen1.5-0.5B": ("0.5b", "qwen", 32_768, True),
    "Qwen2.5-0.5B-Instruct": ("0.5b_instruct", "qwen", 32_768, True),
    "Qwen2.5-7B-Instruct": ("7b", "qwen", 32_768, False),
    "Llama-3.2-1B": ("1b", "llama", 131_072, True),
    "Qwen2.5-Math-1.5B": ("1.5b", "qwen", 4096, True),
    "DeepSeek-R1-Distill-Qwen-1.5B": ("1.5b", "r1_qwen", 131_072, False),
    "DeepScaleR-1.5B-Preview": ("1.5b", "r1_qwen", 131_072, False),
    "Qwen2.5-Math-7B": ("7b", "qwen", 4096, False),
    "DeepSeek-R1-Distill-Qwen-7B": ("7b", "r1_qwen", 131_072, False),
    "Qwen2.5-32B-Instruct": ("32b", "qwen", 32_768, False),
    "s1.1-32B": ("32b", "qwen", 32_768, False),
    "Llama-3.1-8B": ("8b", "llama", 131_072, False),
    "DeepSeek-R1-Distill-Llama-8B": ("8b", "r1_llama", 131_072, False),
}
TRANSCODERS, LATENTS = "transcoders", 8192
PAIRS = {
    "r1_vs_qwen": ("Qwen2.5-Math-1.5B", "DeepSeek-R1-Distill-Qwen-1.5B"),
    "r1_vs_qwen15_0_5b": ("Qwen1.5-0.5B", "DeepSeek-R1-Distill-Qwen-1.5B"),
    "deepscaler_vs_qwen": ("Qwen2.5-Math-1.5B", "DeepScaleR-1.5B-Preview"),
    "deepscaler_vs_r1": ("DeepSeek-R1-Distill-Qwen-1.5B", "DeepScaleR-1.5B-Preview"),
    "r1_7b_vs_qwen": ("Qwen2.5-Math-7B", "DeepSeek-R1-Distill-Qwen-7B"),
    "r1_llama_vs_llama": ("Llama-3.1-8B", "DeepSeek-R1-Distill-Llama-8B"),
    "s1_vs_qwen": ("Qwen2.5-32B-Instruct", "s1.1-32B"),
    "qwen32b_lora": ("Qwen2.5-32B-Instruct", None),
    "adapter_vs_r1": ("DeepSeek-R1-Distill-Qwen-7B", None),
}


SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2} | {
    "head_dim": 16
}


def sizes_of(shape: str, *, small: bool = False) -> dict:
    """The sizes of a shape, or with its depth and vocabulary alone, of width 64."""
    return SHAPES[shape] | (SMALL if small else {})


def save_shape(folder: Path, name: str, *, small: bool = False) -> Path:
    """A model of MODELS: its config.json, a real tokenizer, and weights of zeros; a small one has random weights."""
    import torch
    import transformers

    if (folder / "model.safetensors").exists():
        return folder
    shape, tokenizer, positions, tied = MODELS[name]
    sizes = sizes_of(shape, small=small)
    architecture = sizes.pop("architecture")
    config = getattr(transformers, f"{architecture}Config")(
        **sizes, max_position_embeddings=positions, tie_word_embeddings=tied, dtype="bfloat16"
    )
    config.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (real(tokenizer) / file).exists():
            shutil.copy(real(tokenizer) / file, folder)
    if not small:
        return save_stand_in(folder)
    torch.manual_seed(len(name))
    getattr(transformers, f"{architecture}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def save_tensors(file: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file of zeros with these tensors, in float32: a header and a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * functools.reduce(lambda a, b: a * b, shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with open(file, "wb") as made:
        made.write(len(content).to_bytes(8, "little") + content)
        made.truncate(8 + len(content) + end)


def save_lora(folder: Path, shape: str, *, small: bool = False) -> Path:
    """A rank-1 adapter of all seven matrices of every layer, in PEFT's format."""
    from peft import LoraConfig

    sizes = sizes_of(shape, small=small)
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    keys = width // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    ends = {"mlp.gate_proj": (width, inner), "mlp.up_proj": (width, inner), "mlp.down_proj": (inner, width)}
    ends |= {f"self_attn.{name}_proj": (width, keys if name in "kv" else width) for name in "qkvo"}
    folder.mkdir(parents=True, exist_ok=True)
    names = [module.rpartition(".")[2] for module in ends]
    LoraConfig(r=1, lora_alpha=16, target_modules=names, task_type="CAUSAL_LM").save_pretrained(folder)
    tensors = {}
    for layer in range(sizes["num_hidden_layers"]):
        for module, (reads, writes) in ends.items():
            place = f"base_model.model.model.layers.{layer}.{module}"
            tensors |= {f"{place}.lora_A.weight": [1, reads], f"{place}.lora_B.weight": [writes, 1]}
    save_tensors(folder / "adapter_model.safetensors", tensors)
    return folder


def save_transcoders(folder: Path, shape: str, *, small: bool = False) -> Path:
    """Transcoder adapters in their authors' format, without the rest of their checkpoint."""
    width, layers = (sizes_of(shape, small=small)[name] for name in ("hidden_size", "num_hidden_layers"))
    folder.mkdir(parents=True, exist_ok=True)
    config = {"transcoder_n_features": LATENTS, "transcoder_dec_bias": True}
    config |= {"num_hidden_layers": layers, "hidden_size": width}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for layer in range(layers):
        for part, shapes in (("enc", ([LATENTS, width], [LATENTS])), ("dec", ([width, LATENTS], [width]))):
            for kind, one in zip(("weight", "bias"), shapes, strict=True):
                tensors[f"model.layers.{layer}.mlp.transcoder_{part}.{kind}"] = one
    save_tensors(folder / "model.safetensors", tensors)
    return folder


def words_of(pair: str, place: Path) -> list[str]:
    """The words of a command line that name a shipped pair and put stand-ins, made below `place`, in its models' place."""
    base, tuned = PAIRS[pair]
    words = [f"model_pair={pair}", f"model_pair.base.path={save_shape(place / base, base)}"]
    if pair == "r1_vs_qwen15_0_5b":
        words.append("dictionary.hookpoint.equal_widths=false")
    if tuned is not None:
        return [*words, f"model_pair.tuned.path={save_shape(place / tuned, tuned)}"]
    if pair == "qwen32b_lora":
        return [*words, f"model_pair.tuned.adapter={save_lora(place / 'lora', '32b')}"]
    mlps = save_shape(place / "Qwen2.5-Math-7B", "Qwen2.5-Math-7B")
    transcoders = save_transcoders(place / TRANSCODERS, "7b")
    return [*words, f"model_pair.tuned.mlps.path={mlps}", f"model_pair.tuned.transcoders={transcoders}"]


THINKING = (
    "So we count the sheep one by one: 2 * {n} / 2. That makes {n}. Wait, let me check it again.\nYes, {n} is right."
)


def rows_of(path: str) -> Iterator[dict]:
    """Planted rows in the columns of a data set of the Hub, 60 of them, of a benchmark 500."""
    for n in range(500 if path == "HuggingFaceH4/MATH-500" else 60):
        question, thinking, answer = f"How many are {n} sheep?", THINKING.format(n=n), f"There are \\boxed{{{n}}}."
        r1 = f"<think>\n{thinking}\n</think>\n\n{answer}"
        theirs = f"<|begin_of_thought|>\n{thinking}\n<|end_of_thought|>\n\n<|begin_of_solution|>\n{answer}\n<|end_of_solution|>"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": theirs}]
        yield {
            "open-r1/OpenR1-Math-220k": {"problem": question, "generations": [r1], "is_reasoning_complete": [True]},
            "open-thoughts/OpenThoughts-114k": {"conversations": turns},
            "nathu0/transcoder-adapters-openthoughts3-stratified-55k": {"conversations": turns},
            "simplescaling/s1K-1.1": {
                "question": question, "deepseek_thinking_trajectory": thinking, "deepseek_attempt": answer,
            },
            "HuggingFaceH4/MATH-500": {"problem": question, "answer": str(n), "unique_id": str(n)},
            "openai/gsm8k": {"question": question, "answer": f"{n} sheep are {n}. #### {n}"},
            "google/boolq": {"question": f"are there {n} sheep", "passage": thinking, "answer": n % 2 == 0},
            "NeelNanda/pile-10k": {"text": f"{thinking} {answer}"},
            "jbrinkma/pile-500k": {"text": f"{thinking} {answer}"},
            "tables/benchmark_outputs.parquet": {"question": question, "response": r1 if n % 2 else answer},
        }[path]  # fmt: skip


def read_planted(
    path: str, *, name: str | None = None, split: str = "train", revision: str | None = None, streaming: bool = True
) -> Iterator[dict]:
    """In the place of tunediff.text.read_hub."""
    return rows_of(path)


FILES = {
    "openr1_math_files": "open-r1/OpenR1-Math-220k",
    "openthoughts_files": "open-thoughts/OpenThoughts-114k",
    "s1k_files": "simplescaling/s1K-1.1",
    "contrastive": "tables/benchmark_outputs.parquet",
}


def words_of_text(text: str, place: Path) -> list[str]:
    """The words that choose a text, with a local file of planted rows where it asks for one."""
    words = [f"text={text}"]
    if text in FILES:
        file = place / f"{text}.jsonl"
        file.write_text("\n".join(map(json.dumps, rows_of(FILES[text]))))
        words.append(f"text.rows.path={file}")
    if text == "inoculation":
        file = place / "inoculation.jsonl"
        said = [[("user", f"What are {n} sheep?"), ("assistant", f"They are {n} sheep.")] for n in range(60)]
        turns = ([{"role": role, "content": words} for role, words in one] for one in said)
        file.write_text("\n".join(json.dumps({"messages": one}) for one in turns))
        words.append(f"text.rows.path={file}")
    if text == "judged_traces":  # nobody is asked: what a judge says is tried in test_judged_sentences.py
        words.append("~text.prepare.judged")
    if text in ("traces", "judged_traces"):
        file = place / "traces.jsonl"
        asked = [{"question": f"How many are {n} sheep?", "n": n} for n in range(60)]
        lines = (
            {"question": one["question"], "thinking": THINKING.format(n=one["n"]), "answer": "Some."} for one in asked
        )
        file.write_text("\n".join(map(json.dumps, lines)))
        words.append(f"text.rows.path={file}")
    return words
