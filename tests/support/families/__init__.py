"""Tiny models of every supported family: real classes of transformers, random weights, a tokenizer built here."""
