"""Held-out exact match of a pocket checkpoint, kind by kind.

    python evaluate.py MODEL_DIR                 greedy answers, judged by teacher forcing (fast)
    python evaluate.py MODEL_DIR --generate      the same by transformers' own greedy `generate` (slow, independent)
    python evaluate.py MODEL_DIR --ask "Clean up: the   cat sat"

Teacher forcing asks whether, after every correct prefix, the most likely token is the next correct one. Then the greedy
answer is the expected one. It is slightly stricter than comparing texts: the right text in other tokens counts as wrong.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from generate import held_out
from network import Pocket
from packing import Encoder, pack, tensors

ROW_TOKENS = 512


def load(directory):
    model = Pocket()
    state = {name: tensor.float() for name, tensor in load_file(directory / "model.safetensors").items()}
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def verdicts(model, encoder, rows):
    """One bool per (prompt, answer) row, in order."""
    documents = []
    for index, (prompt, answer) in enumerate(rows):
        before = encoder.prompt([{"role": "user", "content": prompt}])
        after = encoder.text(answer) + [encoder.end]
        documents.append((before + after, [0.0] * len(before) + [float(index + 1)] * len(after)))
    right = [True] * len(rows)
    packed = pack(documents, ROW_TOKENS)
    for at in range(0, len(packed), 8):
        batch = tensors(packed[at:at + 8], ROW_TOKENS, encoder.end_of_text)
        owners = batch["weights"].long()  # row number + 1 where an answer token is to be predicted
        hidden = model.hidden(batch["ids"], batch["positions"], batch["documents"])
        guesses = model.logits(hidden[owners > 0]).argmax(-1)
        for owner in owners[owners > 0][guesses != batch["targets"][owners > 0]].tolist():
            right[owner - 1] = False
    return right


def exact_match(model, encoder, rows_per_kind=100):
    """{kind: share of held-out rows answered exactly}."""
    shares = {}
    for kind, rows in held_out().items():
        right = verdicts(model, encoder, rows[:rows_per_kind])
        shares[kind] = sum(right) / len(right)
    return shares


def generated_answers(directory, prompts):
    """Greedy answers by transformers, through the checkpoint's own chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for prompt in prompts:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=120, do_sample=False)
        yield tokenizer.decode(output[0, ids.shape[1]:], skip_special_tokens=True)


def generated_match(directory, rows_per_kind):
    shares = {}
    for kind, rows in held_out().items():
        rows = rows[:rows_per_kind]
        answers = generated_answers(directory, [prompt for prompt, _ in rows])
        shares[kind] = sum(answer == expected for answer, (_, expected) in zip(answers, rows)) / len(rows)
    return shares


def report(shares):
    """Lines for people: the worst kind first, the mean over kinds last."""
    lines = [f"{share:7.1%}  {kind}" for kind, share in sorted(shares.items(), key=lambda pair: pair[1])]
    return "\n".join([*lines, f"{sum(shares.values()) / len(shares):7.1%}  mean of {len(shares)} kinds"])


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--rows", type=int, default=100, help="rows of each kind, at most 100")
    arguments.add_argument("--generate", action="store_true")
    arguments.add_argument("--ask")
    options = arguments.parse_args()
    if options.ask:
        print(next(iter(generated_answers(options.directory, [options.ask]))))
    elif options.generate:
        print(report(generated_match(options.directory, options.rows)))
    else:
        print(report(exact_match(load(options.directory), Encoder(options.directory), options.rows)))


if __name__ == "__main__":
    main()
