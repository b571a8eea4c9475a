"""What a step of fine-tuning costs beside transformers' Trainer: learned tokens a second on the same examples.

    python bench/finetune.py [--width 256 --layers 4 --vocabulary 32000] [--examples 64] [--repeats 3]

A randomly initialised Qwen2 reads examples of random ids, of which all but a prompt is learned. Trainer, the loop here, and
the loop here with several examples in a block take turns in one run; medians and their ratios are printed, and the mean
loss, which is that of an untrained model in each (the learning rate is 0; the batches differ).
"""

import argparse
import statistics
import tempfile
import time

import lightning
import torch
import transformers

from tunediff import randomness
from tunediff.objectives import Imitation
from tunediff.schedules import Constant
from tunediff.text import Batches, Example, packed
from tunediff.training import AllWeights, FineTuning


def traces(count: int, vocabulary: int, longest: int) -> list[Example]:
    """Random ids of 1/8 to all of the longest; the first fifth is a prompt."""
    generator = randomness.generator(0, "traces")
    lengths = torch.randint(longest // 8, longest + 1, (count,), generator=generator).tolist()
    ids = (torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in lengths)
    return [Example(some, [n >= len(some) // 5 for n in range(len(some))]) for some in ids]


def by_trainer(model, examples: list[Example], batch: int) -> list[float]:
    """transformers' Trainer, padding to the longest of a batch."""
    rows = [
        {"input_ids": e.ids, "labels": [i if flag else -100 for i, flag in zip(e.ids, e.learned, strict=True)]}
        for e in examples
    ]

    def collate(some: list[dict]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in some)
        fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        padded = {name: torch.full((len(some), length), value) for name, value in fill.items()}
        for n, row in enumerate(some):
            for name in ("input_ids", "labels"):
                padded[name][n, : len(row[name])] = torch.tensor(row[name])
            padded["attention_mask"][n, : len(row["input_ids"])] = 1
        return padded

    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            folder, per_device_train_batch_size=batch, num_train_epochs=1, learning_rate=0.0, lr_scheduler_type="constant",
            logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        )  # fmt: skip
        trainer = transformers.Trainer(model, settings, train_dataset=rows, data_collator=collate)
        trainer.train()
    return [float(record["loss"]) for record in trainer.state.log_history if "loss" in record]


def by_us(model, examples: list[Example], batch: int, *, block: int | None = None) -> list[float]:
    """FineTuning; with `block`, several examples in a sequence."""
    sequences, size = examples, batch
    if block is not None:
        sequences, size = packed(examples, block), 1
    steps = Batches(sequences, batch=size, micro_batch=size)
    module = FineTuning(
        AllWeights("float32").prepare(model, 0), Imitation(), steps, learning_rate=0.0,
        learning_rate_schedule=Constant(), gradient_checkpointing=False,
    )  # fmt: skip
    trainer = lightning.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(module)
    return [record["loss"] for record in module.history]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--longest", type=int, default=512)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()

    config = transformers.Qwen2Config(
        vocab_size=asked.vocabulary, hidden_size=asked.width, intermediate_size=4 * asked.width,
        num_hidden_layers=asked.layers, num_attention_heads=asked.width // 64, num_key_value_heads=asked.width // 64,
    )  # fmt: skip
    examples = traces(asked.examples, asked.vocabulary, asked.longest)
    ways = {
        "transformers' Trainer": lambda model: by_trainer(model, examples, asked.batch),
        "tunediff": lambda model: by_us(model, examples, asked.batch),
        "tunediff, packed": lambda model: by_us(model, examples, asked.batch, block=asked.batch * asked.longest),
    }
    learned = sum(sum(example.learned) for example in examples)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    means: dict[str, float] = {}
    for repeat in range(asked.repeats + 1):
        for name, way in ways.items():
            torch.manual_seed(randomness.seed_for(0, "model to fine-tune"))
            model = transformers.Qwen2ForCausalLM(config)
            begun = time.perf_counter()
            losses = way(model)
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - begun)
            means[name] = sum(losses) / len(losses)
    slowest = statistics.median(seconds["transformers' Trainer"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"{name:24s} {learned / median:10,.0f} learned tokens/s   x{slowest / median:.2f}   mean loss {means[name]:.4f}"
        )


if __name__ == "__main__":
    main()
