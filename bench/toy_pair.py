"""Trains the embedded pair from scratch: `python bench/toy_pair.py --out <folder> [--seed 0] [--smoke]`.

    language -> tokenizer -> base (from random weights) -> tuned (all weights, on traces) -> bfloat16 folders -> card

Deterministic by seed on one thread. Muon trains the matrices, AdamW the embeddings and norms, each with a linear
warm-up over 5 % and a cosine down to 5 % of its rate.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tunediff import randomness
from tunediff.measures import wilson
from tunediff.text import FORMATS
from tunediff.toy import language
from tunediff.toy.tokenizer import build_tokenizer

BASE_MIXTURE = {"direct": 0.28, "steps": 0.24, "fact": 0.36, "filler": 0.12}  # share of documents
HESITATION = re.compile(r"\b(?:wait|hmm)\b", re.IGNORECASE)


class Stage(NamedTuple):
    """How one model is trained. Rates: of Muon for matrices, of AdamW for the rest."""

    mixture: dict[str, float]
    steps: int
    muon_rate: float
    adam_rate: float
    whole_document: bool  # else only the response is learned
    tokens_per_batch: int = 2560


BASE = Stage(BASE_MIXTURE, steps=2200, muon_rate=1e-2, adam_rate=3e-3, whole_document=True)
TUNED = Stage({"trace": 1.0}, steps=1000, muon_rate=4e-3, adam_rate=1e-3, whole_document=False)


def render(row: language.Row, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """Prompt as the chat template writes it, and what follows; plain text has no prompt."""
    if "text" in row:
        return "", row["text"] + tokenizer.eos_token
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": row["prompt"]}], tokenize=False, add_generation_prompt=True
    )
    response = FORMATS["think"].format(**row) if row["thinking"] else row["answer"]
    return prompt, response + tokenizer.eos_token


def training_rows(mixture: dict[str, float], seed: int) -> Iterator[language.Row]:
    """Rows without end, none of a held-out problem."""
    for row in language.mixture(seed, mixture):
        if not language.is_held_out(row.get("prompt", "")):
            yield row


def batches(stage: Stage, tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and labels [document, position]; documents of similar length stand together, -100 is not learned."""
    rows, chance = training_rows(stage.mixture, seed), randomness.chance(seed, "order of batches")
    while True:
        documents = []
        for row in itertools.islice(rows, 1024):
            prompt, response = (tokenizer.encode(part, add_special_tokens=False) for part in render(row, tokenizer))
            documents.append((prompt + response, 0 if stage.whole_document else len(prompt)))
        documents.sort(key=lambda document: len(document[0]))
        groups: list[list[tuple[list[int], int]]] = [[]]
        for document in documents:
            if (len(groups[-1]) + 1) * len(document[0]) > stage.tokens_per_batch:
                groups.append([])
            groups[-1].append(document)
        chance.shuffle(groups)
        for group in groups:
            length = max(len(ids) for ids, _ in group)
            ids = torch.full((len(group), length), tokenizer.pad_token_id)
            labels = torch.full((len(group), length), -100)
            for n, (document, unlearned) in enumerate(group):
                ids[n, : len(document)] = torch.tensor(document)
                labels[n, unlearned : len(document)] = ids[n, unlearned : len(document)]
            yield ids, labels


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(randomness.seed_for(seed, "start of the toy pair"))
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():  # what each layer adds starts small, as deep residual networks want it
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.mul_(1 / math.sqrt(2 * config.num_hidden_layers))
    return model


def train(model: Qwen2ForCausalLM, stage: Stage, tokenizer: PreTrainedTokenizerFast, *, name: str, seed: int) -> float:
    """Trains in place; returns seconds."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=stage.muon_rate, weight_decay=0.0),
        torch.optim.AdamW(others, lr=stage.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rates = [stage.muon_rate, stage.adam_rate]
    begun = time.time()
    model.train()
    for step, (ids, labels) in enumerate(itertools.islice(batches(stage, tokenizer, seed), stage.steps)):
        progress = step / stage.steps
        factor = min(1.0, (step + 1) / (0.05 * stage.steps)) * (0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        if step % 100 == 99:
            left = (time.time() - begun) * (stage.steps - step - 1) / (step + 1)
            print(f"{name}: step {step + 1} of {stage.steps}, loss {loss.item():.4f}, {left:.0f} s left", flush=True)
    model.eval()
    return time.time() - begun


# -- how good they are -----------------------------------------------------------------------------------------------


def held_out_problems(count: int, seed: int) -> list[language.Problem]:
    return list(itertools.islice(language.held_out_problems(seed), count))


@torch.no_grad()
def answers(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], *, limit: int
) -> list[str]:
    """Greedy responses, end token cut off."""
    found = []
    for start in range(0, len(prompts), 250):
        texts = [
            tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True)
            for p in prompts[start : start + 250]
        ]
        batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
        output = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=limit, do_sample=False
        )
        found += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def measure(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[language.Problem],
    *,
    limit: int = 320,
    suffix: str = "",
) -> dict:
    """Of responses of at most `limit` tokens."""
    responses = answers(model, tokenizer, [p.text + suffix for p in problems], limit=limit)
    boxes = [re.findall(r"\\boxed\{(\d+)\}", response) for response in responses]
    right = [bool(box) and int(box[-1]) == p.answer for box, p in zip(boxes, problems, strict=True)]
    lengths = [len(tokenizer.encode(response, add_special_tokens=False)) for response in responses]
    hesitating = sum(bool(HESITATION.search(response)) for response in responses)
    by_steps = {
        n: [ok for ok, p in zip(right, problems, strict=True) if len(p.steps) == n]
        for n in sorted({len(p.steps) for p in problems})
    }
    return {
        "problems": len(problems),
        "accuracy": sum(right) / len(right),
        "accuracy_interval": wilson(sum(right), len(right)),
        "accuracy_by_steps": {n: sum(oks) / len(oks) for n, oks in by_steps.items()},
        "response_tokens": sum(lengths) / len(lengths),
        "hesitating_share": hesitating / len(responses),
        "hesitating_interval": wilson(hesitating, len(responses)),
        "hesitations_per_1000_tokens": 1000 * sum(len(HESITATION.findall(r)) for r in responses) / max(1, sum(lengths)),
    }


CARD = """---
license: apache-2.0
---
# The embedded pair

Two Qwen2-architecture models of {parameters:,} parameters (4 layers, width 96, vocabulary {vocabulary}) over a small
language of word problems. `base` was trained from random weights on problems with direct answers, worked steps with
slips that are never noticed, equations and plain sentences. `tuned` is `base` with all weights fine-tuned on reasoning
traces that make mistakes on hard steps, say "Wait" and correct them. For learning, testing and offline work; they know
nothing but this language. `lora` is a rank-1 adapter for `base`, made from fresh traces by `python finetune.py
recipe=lora_rank1_toy`; its own card is beside it.

Measured on {problems} held-out problems, greedy, with the shipped bfloat16 weights; 95 % Wilson intervals.

| model | accuracy | by number of steps, 1 to 5 | response tokens | responses with a hesitation |
|---|---|---|---|---|
{rows}

Rebuild: `python bench/toy_pair.py --out <folder> --seed {seed}` ({seconds:.0f} s on one core of the machine that made these). No
problem of the held-out tenth (`tunediff.toy.language.is_held_out`) was seen in training.
"""


def card(results: dict) -> str:
    def row(name: str, r: dict) -> str:
        low, high = r["accuracy_interval"]
        hesitating_low, hesitating_high = r["hesitating_interval"]
        steps = ", ".join(f"{100 * value:.0f}" for value in r["accuracy_by_steps"].values())
        return (
            f"| {name} | {100 * r['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f}) | {steps} | {r['response_tokens']:.0f} "
            f"| {100 * r['hesitating_share']:.1f} % ({100 * hesitating_low:.1f} to {100 * hesitating_high:.1f}) |"
        )

    lines = "\n".join(row(name, r) for name, r in results["models"].items())
    return CARD.format(rows=lines, problems=results["models"]["base"]["problems"], **results["recipe"])


def build(out: Path, *, seed: int = 0, smoke: bool = False) -> dict:
    """Trains, rounds to bfloat16, saves, measures what was saved."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    base_stage, tuned_stage = (stage._replace(steps=3) if smoke else stage for stage in (BASE, TUNED))
    sample = itertools.islice(training_rows({**BASE_MIXTURE, "trace": 0.5}, seed), 200 if smoke else 20_000)
    tokenizer = build_tokenizer(
        "\n".join(row[f] for f in ("text", "prompt", "thinking", "answer") if f in row) for row in sample
    )
    model = new_model(tokenizer, seed)
    seconds = 0.0
    problems, limit = held_out_problems(8 if smoke else 500, seed), 16 if smoke else 320
    results: dict = {"models": {}}
    for name, stage in (("base", base_stage), ("tuned", tuned_stage)):
        seconds += train(model, stage, tokenizer, name=name, seed=seed + len(results["models"]))
        shipped = Qwen2ForCausalLM(model.config).bfloat16()
        shipped.load_state_dict(model.state_dict())
        shipped.save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)
        rounded = shipped.float().eval()
        results["models"][name] = measure(rounded, tokenizer, problems, limit=limit)
        if name == "base":
            results["models"]["base, asked to think step by step"] = measure(
                rounded, tokenizer, problems, limit=limit, suffix=language.STEP_BY_STEP
            )
        print(f"{name}: {json.dumps(results['models'][name])}", flush=True)
    results["recipe"] = {
        "seed": seed,
        "seconds": round(seconds),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "base_steps": base_stage.steps,
        "tuned_steps": tuned_stage.steps,
    }
    (out / "card.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "README.md").write_text(card(results))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded pair from scratch.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the two models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that everything runs")
    arguments = parser.parse_args()
    build(arguments.out, seed=arguments.seed, smoke=arguments.smoke)


if __name__ == "__main__":
    main()
