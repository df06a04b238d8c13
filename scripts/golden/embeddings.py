#!/usr/bin/env python3
"""Vectors of texts from transformers: the mean of the last hidden states of recipes/pocket, of length 1.

    python scripts/golden/embeddings.py > crates/runner/tests/golden/pocket_embeddings.json

The first 16 numbers of each vector, and the products of all pairs of whole vectors.
"""
import json
import sys
from pathlib import Path

# `statistics.py` beside this script would stand in for Python's own.
sys.path.pop(0)

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

POCKET = Path(__file__).resolve().parents[2] / "recipes/pocket"
TEXTS = [
    "Anna Berg ordered 3 blue lamps in Lisbon on 4 May 2021.",
    "anna berg ordered three lamps in lisbon",
    "In Kyoto, Ravi sold 5 guitars on 30 October.",
    "z",
    "A long text. " * 24,
]

tokenizer = AutoTokenizer.from_pretrained(POCKET)
model = AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32).eval()
vectors = []
for text in TEXTS:
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        # The base model's output has gone through the last norm.
        mean = model.model(ids).last_hidden_state[0].double().mean(0)
    vectors.append(mean / mean.norm())
products = [[round(float(a @ b), 7) for b in vectors] for a in vectors]
json.dump(
    {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "texts": TEXTS,
        "first": [[round(float(x), 7) for x in vector[:16]] for vector in vectors],
        "products": products,
    },
    sys.stdout,
    indent=1,
)
