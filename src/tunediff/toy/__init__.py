"""The embedded pair: a small language of word problems, a tokenizer, and two models really trained on it.

In the repository, `python bench/toy_pair.py` makes everything under weights/ anew; weights/README.md says what came out.
"""
