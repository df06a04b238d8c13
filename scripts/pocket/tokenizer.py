"""Trains the pocket tokenizer: byte-level BPE behind exactly Qwen2's normaliser, pre-tokenizer and decoder.

    python tokenizer.py OUT_DIR

Writes tokenizer.json and tokenizer_config.json, whose chat template is plain ChatML without a default system prompt.
"""

import json
import random
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from generate import SYMBOLS, Documents
from words import CITIES, FILLERS, FIRST_NAMES, ITEMS, LAST_NAMES

VOCABULARY = 2048
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CORPUS_DOCUMENTS = 40_000
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def corpus():
    """Training documents, plus every listed word alone and text with the punctuation of data files."""
    documents = Documents(seed=77)
    for _ in range(CORPUS_DOCUMENTS):
        document = documents.next()
        yield document if isinstance(document, str) else "\n".join(
            message["role"] + "\n" + message["content"] for message in document
        )
    rng = random.Random(78)
    for _ in range(20):
        for each in FIRST_NAMES + LAST_NAMES + CITIES + ITEMS + FILLERS:
            yield f"{each} {each}"
    for _ in range(10_000):
        yield " ".join(rng.choice(SYMBOLS) + rng.choice(FILLERS) + rng.choice(SYMBOLS) for _ in range(2))


def train():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = {"add_prefix_space": False, "use_regex": False, "trim_offsets": False}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(**byte_level),
    ])
    tokenizer.post_processor = processors.ByteLevel(**byte_level)
    tokenizer.decoder = decoders.ByteLevel(**byte_level)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    # Added after training, so that they are the last ids, as in Qwen's own files.
    tokenizer.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in SPECIAL_TOKENS])
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def tokenizer_config(tokenizer):
    added = {
        str(tokenizer.token_to_id(each)): {
            "content": each, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True,
        }
        for each in SPECIAL_TOKENS
    }
    return {
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": None, "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
        "model_max_length": 1024, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }


def main(directory):
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(tokenizer), indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
