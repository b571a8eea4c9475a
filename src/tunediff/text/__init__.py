"""Rows -> rendered text -> token ids, segments and labels -> padded batches for the two models.

    rows.py -> preparing.py -> rendering.py -> documents.py -> batches.py     what a model reads
                                            -> examples.py                    what a model learns from, for fine-tuning
    sound.py                             rows that cannot be read: refused by their place, or left out and counted
    marks.py, templates.py               how thinking is marked, what a chat template writes
    annotations.py, labels.py            labels that a row brings with it, labels by rule
    tokenizers.py, aligned.py            how far two tokenizers agree, and which of their tokens stand for each other
    spelling.py                          how a token is read by a person

A row is a dictionary of strings: a problem with its response, or plain text. Nothing here knows a model or an
activation. Segments follow the character ranges of the rendered text, so they hold for every tokenizer.
"""

from tunediff.text.batches import Batch, padded, padded_groups
from tunediff.text.documents import Text
from tunediff.text.examples import Batches, Example, Examples, MicroBatch, Step, examples, packed
from tunediff.text.labels import HESITATIONS, by_rule, sentences
from tunediff.text.marks import FORMATS, LAYOUTS, Layout, Thought, layout, opened_by, split_response, thoughts
from tunediff.text.preparing import Inoculate, each_generation, exchange, in_s1_form
from tunediff.text.rendering import KNOWN_LABELS, Manner, render, render_prompt
from tunediff.text.rows import TextError, read_files, read_hub
from tunediff.text.spelling import PLACEHOLDER, Spelling, text_of
from tunediff.text.tokenizers import Agreement, Tokenizer, compare_tokenizers, encode
