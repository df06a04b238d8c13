"""Fine-tunes a pocket checkpoint on the quickstart data with PEFT and prints test exact match before and after.

    python lora_check.py MODEL_DIR ../../datasets/quickstart --learning-rate 2e-3

Rank 16, alpha 32, all seven linear layers, loss on the assistant's turn: what `tune train` does, by other means.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from packing import Encoder

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORED = -100


def read(path):
    return [json.loads(line)["messages"] for line in path.read_text().splitlines()]


def encode(encoder, messages):
    """Ids and labels of one chat; the prompt carries no loss."""
    before = encoder.prompt(messages[:1])
    after = encoder.text(messages[1]["content"]) + [encoder.end]
    return before + after, [IGNORED] * len(before) + after


def collate(rows, pad):
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in rows])
    return ids, labels


@torch.no_grad()
def exact_match(model, rows, pad):
    """Share of rows whose answer is the greedy one, by teacher forcing (see evaluate.py)."""
    right = 0
    for at in range(0, len(rows), 20):
        ids, labels = collate(rows[at:at + 20], pad)
        guesses, labels = model(input_ids=ids).logits[:, :-1].argmax(-1), labels[:, 1:]
        right += ((guesses == labels) | (labels == IGNORED)).all(1).sum().item()
    return right / len(rows)


def train(model, rows, pad, options):
    optimiser = torch.optim.AdamW(
        [each for each in model.parameters() if each.requires_grad], lr=options.learning_rate, weight_decay=0.0
    )
    rng = random.Random(1)
    steps = [order[at:at + options.batch] for order in (rng.sample(rows, len(rows)) for _ in range(options.epochs))
             for at in range(0, len(rows), options.batch)]
    warmup = max(1, len(steps) * 3 // 100)
    for step, batch in enumerate(steps):
        scale = min((step + 1) / warmup, (len(steps) - step) / (len(steps) - warmup))
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * scale
        ids, labels = collate(batch, pad)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if step % 50 == 0:
            print(f"step {step} of {len(steps)} loss {loss.item():.4f}", flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--learning-rate", type=float, default=2e-3)
    arguments.add_argument("--epochs", type=int, default=3)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--threads", type=int, default=1)
    options = arguments.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(options.threads)
    encoder = Encoder(options.model)
    parts = {name: [encode(encoder, chat) for chat in read(options.data / f"{name}.jsonl")] for name in ("train", "test")}
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    print(f"before: {exact_match(base, parts['test'], encoder.end_of_text):.1%}")
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS))
    start = time.time()
    train(model, parts["train"], encoder.end_of_text, options)
    print(f"after:  {exact_match(model, parts['test'], encoder.end_of_text):.1%} in {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
