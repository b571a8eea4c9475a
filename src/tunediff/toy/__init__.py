"""The embedded pair: a small language of word problems, a tokenizer, and two models really trained on it.

`python -m tunediff.toy.build` makes everything under weights/ anew; weights/README.md says what came out.
"""
