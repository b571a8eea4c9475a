"""Documents of the toy language -> a byte-level BPE tokenizer in transformers' format, with a chat template.

Digits, line breaks and punctuation are tokens of their own, words carry the space before them; any other text is
spelled in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

USER, ASSISTANT, END, PAD = "<｜User｜>", "<｜Assistant｜>", "<｜end｜>", "<｜pad｜>"
MARKERS = ("<think>", "</think>", "\\boxed{")
PIECES = Regex(r"\d|\n| ?[A-Za-z']+|[^\sA-Za-z\d]| ")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}" + USER + "{{ message['content'] }}"
    "{% else %}" + ASSISTANT + "{{ message['content'] }}" + END + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def build_tokenizer(documents: Iterable[str], *, size: int = 512) -> PreTrainedTokenizerFast:
    """Learns the merges of `documents`; the vocabulary has at most `size` entries, all bytes among them."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(PIECES, behavior="isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(MARKERS),
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.add_tokens([AddedToken(marker, normalized=False, special=False) for marker in MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
