"""Make `torchenv_magic/builds/catalog.jsonl`, which says what PyTorch builds exist, from facts.

The facts lie in `catalog/facts`: what people found out and wrote down (`*.toml`), and what was read
by this script (`read.jsonl`). Each has its source.
"""
