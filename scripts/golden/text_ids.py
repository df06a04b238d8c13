#!/usr/bin/env python3
"""Goldens of crates/text: ids of published tokenizers as transformers gives them, control tokens recognised.

    python scripts/golden/text_ids.py ASSETS > crates/text/tests/golden/ids.json

{0}, {1}, ... in a text stand for the tokenizer's control tokens in order of their ids, so that what they do to
the white space around them and to the text behind them is compared too. Recorded is the beginning of the SHA-256
of the ids, separated by commas, and of the text decoded without control tokens.
"""
import hashlib
import json
import sys
from pathlib import Path

import tokenizers
import transformers

TEXTS = [
    "{0}{1} Hello  world {2}\n\n x{0}",
    "{1}user\nWhat's 12345 + 67?{2}\n{1}assistant\n\n  It's 12412.{2} \n",
    "a{0}b {1} c  {2}   d\t{0}\n",
    "Zwölf Boxkämpfer 🚀👩‍👩‍👧 我想在apple工作 हिन्दी e\u0301\u0300 \u00a0\u200b end",
    "<think>\nhm\n</think>\n\n<tool_call>{{\"a\": [1, null]}}</tool_call> and </s> <s> [INST] <|im_end|",
    "     indented\r\n\tcode(); // ******** \n\n\n\n'S 'LL it'D",
    "\x00\x07 \x7f \ue000 \ufffd \U0010ffff",
]
MODELS = [
    "models/Qwen2.5-1.5B-Instruct", "models/Qwen3-0.6B", "models/Llama-3.2-1B-Instruct", "models/Phi-4-mini-instruct",
    "models/Mistral-7B-Instruct-v0.3", "models/starcoder2-3b", "models/DeepSeek-Coder-V2-Lite-Instruct",
    "lm/stories260K-hf",
]


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main():
    assets = Path(sys.argv[1])
    recorded = {}
    for model in MODELS:
        tokenizer = tokenizers.Tokenizer.from_file(str(assets / model / "tokenizer.json"))
        added = sorted(tokenizer.get_added_tokens_decoder().items())
        control = [token.content for _, token in added if token.special][:3]
        recorded[model] = {"control": control, "texts": []}
        for text in TEXTS:
            text = text.format(*control)
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            decoded = tokenizer.decode(ids, skip_special_tokens=True)
            recorded[model]["texts"].append([text, len(ids), digest(",".join(map(str, ids))), digest(decoded)])
    made_with = {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__}
    json.dump({"made_with": made_with, "models": recorded}, sys.stdout, indent=1)
    print()


main()
