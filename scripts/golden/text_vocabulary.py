#!/usr/bin/env python3
"""Goldens of crates/text: what llama.cpp's converter writes of published tokenizers.

    python scripts/golden/text_vocabulary.py LLAMA_CPP ASSETS > crates/text/tests/golden/vocabulary.json

LLAMA_CPP is a source tree of llama.cpp with its `conversion` package (llama-cpp-python 0.3.36 carries one).
Runs the converter's own vocabulary functions; lists are recorded by the beginning of their SHA-256, entries
separated by a zero byte, numbers as 32-bit little endian.
"""
import hashlib
import json
import shutil
import struct
import sys
import tempfile
from pathlib import Path

llama_cpp, assets = Path(sys.argv[1]), Path(sys.argv[2])
sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]

import gguf  # noqa: E402
import transformers  # noqa: E402
from conversion.llama import LlamaModel  # noqa: E402

KEYS = {
    "tokenizer_model": "tokenizer.ggml.model", "tokenizer_pre": "tokenizer.ggml.pre",
    "token_list": "tokenizer.ggml.tokens", "token_types": "tokenizer.ggml.token_type",
    "token_scores": "tokenizer.ggml.scores", "token_merges": "tokenizer.ggml.merges",
    "bos_token_id": "tokenizer.ggml.bos_token_id", "eos_token_id": "tokenizer.ggml.eos_token_id",
    "unk_token_id": "tokenizer.ggml.unknown_token_id", "sep_token_id": "tokenizer.ggml.seperator_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id", "cls_token_id": "tokenizer.ggml.cls_token_id",
    "mask_token_id": "tokenizer.ggml.mask_token_id", "add_bos_token": "tokenizer.ggml.add_bos_token",
    "add_eos_token": "tokenizer.ggml.add_eos_token", "add_sep_token": "tokenizer.ggml.add_sep_token",
    "add_space_prefix": "tokenizer.ggml.add_space_prefix",
}


def digest(values):
    hashed = hashlib.sha256()
    for value in values:
        if isinstance(value, float):
            hashed.update(struct.pack("<f", value))
        elif isinstance(value, int):
            hashed.update(struct.pack("<i", value))
        else:
            hashed.update((value if isinstance(value, bytes) else value.encode()) + b"\0")
    return f"{len(values)} {hashed.hexdigest()[:16]}"


class Recorder:
    def __init__(self):
        self.entries = {}

    def __getattr__(self, name):
        def record(value):
            key = KEYS.get(name.removeprefix("add_"))
            if key:
                self.entries[key] = digest(value) if isinstance(value, list) else value
        return record


def record(directory, vocabulary, rows):
    converter = object.__new__(LlamaModel)
    converter.dir_model = directory
    converter.hparams = {"vocab_size": rows}
    converter.gguf_writer = Recorder()
    getattr(converter, vocabulary)()
    return {"rows": rows, **converter.gguf_writer.entries}


def without(directory, *names):
    copy = Path(tempfile.mkdtemp())
    for path in directory.iterdir():
        if path.name not in names and path.suffix != ".safetensors" and path.stat().st_size < 64 << 20:
            shutil.copy(path, copy)
    return copy


def main():
    models = assets / "models"
    gpt2, sentencepiece = "_set_vocab_gpt2", "_set_vocab_sentencepiece"
    cases = {
        "models/Qwen2.5-1.5B-Instruct": (models / "Qwen2.5-1.5B-Instruct", gpt2, 151936),
        "models/Qwen3-0.6B": (models / "Qwen3-0.6B", gpt2, 151936),
        "models/Llama-3.1-8B-Instruct": (models / "Llama-3.1-8B-Instruct", gpt2, 128256),
        "models/Llama-3.2-1B-Instruct": (models / "Llama-3.2-1B-Instruct", gpt2, 128256),
        "models/Phi-4-mini-instruct": (models / "Phi-4-mini-instruct", gpt2, 200064),
        "models/Mistral-7B-Instruct-v0.3": (models / "Mistral-7B-Instruct-v0.3", sentencepiece, 32768),
        "models/starcoder2-3b": (models / "starcoder2-3b", gpt2, 49152),
        "models/DeepSeek-Coder-V2-Lite-Instruct": (models / "DeepSeek-Coder-V2-Lite-Instruct", gpt2, 102400),
        "lm/stories260K-hf": (assets / "lm/stories260K-hf", "_set_vocab_llama_hf", 512),
    }
    made_with = {"transformers": transformers.__version__, "llama-cpp-python": "0.3.36"}
    recorded = {}
    for name, (directory, vocabulary, rows) in cases.items():
        try:
            recorded[name] = record(without(directory, "chat_template.jinja"), vocabulary, rows)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    json.dump({"made_with": made_with, "vocabularies": recorded}, sys.stdout, ensure_ascii=False, indent=1)
    print()


main()
