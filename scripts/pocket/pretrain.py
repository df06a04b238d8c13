"""Trains the pocket base model from scratch on a CPU.

    python pretrain.py train --minutes 50 --out ../../recipes/pocket --work /tmp/pocket
    python pretrain.py check ../../recipes/pocket          the same numbers as transformers' Qwen3ForCausalLM

One single-threaded process per core, gradients averaged between them: on busy cores two processes lose less to each
other than two threads that meet after every operation. The length of a run is wall-clock time; the learning rate
warms up, stays, and falls linearly to zero over the last part of that time.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import torch
import torch.distributed as distributed
from safetensors.torch import save_file

from evaluate import exact_match, load
from generate import Documents, held_out
from network import CONFIG, Pocket, write_config
from optimiser import Optimiser
from packing import Batches, Encoder

TOKENS_PER_BATCH = 4096  # of one process
WARMUP_STEPS = 30
DECAY_SHARE = 0.3
# Later on, rows and chats are longer: short contexts are the cheaper ones to learn the tasks in.
LONG_FROM = 0.4
SHORT_ROW_TOKENS, LONG_ROW_TOKENS = 256, 512
SHORT_CHAT_TURNS, LONG_CHAT_TURNS = 4, 10
LOG_EVERY_STEPS = 20


class Clock:
    """Progress of a run, 0 to 1, in wall-clock time; survives a resume."""

    def __init__(self, minutes, spent_seconds=0.0):
        self.total = minutes * 60
        self.start = time.time() - spent_seconds

    def spent(self):
        return time.time() - self.start

    def progress(self):
        return min(1.0, self.spent() / self.total)


def rate_scale(step, progress):
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * min(1.0, (1 - progress) / DECAY_SHARE)


def average(model, extra):
    """Mean of all gradients over the processes; `extra` numbers ride along (clock and loss)."""
    parameters = list(model.parameters())
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters] + [torch.tensor(extra)])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    at = 0
    for parameter in parameters:
        parameter.grad.copy_(flat[at:at + parameter.numel()].view_as(parameter))
        at += parameter.numel()
    return flat[at:].tolist()


def save_checkpoint(model, directory, tokenizer_directory):
    """The model in Hugging Face layout, bf16; the weights appear whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if directory != tokenizer_directory:
            shutil.copy(tokenizer_directory / name, directory / name)
    write_config(directory / "config.json")
    generation = {
        "do_sample": False, "eos_token_id": [CONFIG["eos_token_id"], CONFIG["pad_token_id"]],
        "pad_token_id": CONFIG["pad_token_id"],
    }
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in model.state_dict().items()}
    aside = directory / "model.safetensors.part"
    save_file(weights, aside, metadata={"format": "pt"})
    os.replace(aside, directory / "model.safetensors")


def save_state(path, model, optimiser, step, tokens, clock):
    aside = path.with_suffix(".part")
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state(), "step": step, "tokens": tokens,
                "spent": clock.spent()}, aside)
    os.replace(aside, path)


class Run:
    """One process of a run. Process 0 also keeps time, writes the log and saves."""

    def __init__(self, rank, options):
        self.rank, self.options, self.first = rank, options, rank == 0
        torch.manual_seed(options.seed)
        self.encoder = Encoder(options.out)
        self.model = Pocket()
        self.optimiser = Optimiser(self.model)
        self.step, self.tokens = 0, 0
        self.clock = Clock(options.minutes)
        self.state_path = options.work / "state.pt"
        if options.resume:
            self.resume()
        self.loss_function = torch.compile(self.model.loss) if options.compile else self.model.loss

    def resume(self):
        state = torch.load(self.state_path)
        self.model.load_state_dict(state["model"])
        self.optimiser.load(state["optimiser"])
        self.step, self.tokens = state["step"], state["tokens"]
        self.clock = Clock(self.options.minutes, state["spent"])

    def log(self, text):
        if self.first:
            with open(self.options.log, "a") as log:
                log.write(text + "\n")

    def batches(self, long):
        row_tokens, turns = (LONG_ROW_TOKENS, LONG_CHAT_TURNS) if long else (SHORT_ROW_TOKENS, SHORT_CHAT_TURNS)
        # The step is part of the seed: a resumed run does not read the same documents again.
        documents = Documents(f"{self.options.seed} {self.rank} {self.step}", turns)
        return Batches(documents, self.encoder, TOKENS_PER_BATCH // row_tokens, row_tokens)

    def gradient_step(self, batches):
        """Forward, backward, averaging and update; returns progress and loss, equal in all processes."""
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.loss_function(*batches.next())
        loss.backward()
        progress, mean_loss = average(self.model, [self.clock.progress(), loss.item()])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        scale = rate_scale(self.step, progress)
        self.optimiser.step(scale)
        self.model.zero_grad()
        self.step += 1
        self.tokens += TOKENS_PER_BATCH * distributed.get_world_size()
        return progress, mean_loss, scale

    def evaluate(self, rows_per_kind):
        if self.first:
            shares = exact_match(self.model, self.encoder, rows_per_kind)
            kinds = " ".join(f"{kind} {share:.2f}" for kind, share in shares.items())
            self.log(f"step {self.step} held-out exact match {sum(shares.values()) / len(shares):.3f}: {kinds}")

    def save(self):
        if self.first:
            save_state(self.state_path, self.model, self.optimiser, self.step, self.tokens, self.clock)
            save_checkpoint(self.model, self.options.early, self.options.out)

    def train(self):
        progress, losses = self.clock.progress(), []
        long = progress > LONG_FROM
        batches = self.batches(long)
        last = time.time(), self.tokens
        saved = evaluated = time.time()
        while progress < 1.0:
            if not long and progress > LONG_FROM:
                long = True
                batches = self.batches(long)
            progress, loss, scale = self.gradient_step(batches)
            losses.append(loss)
            if self.step % LOG_EVERY_STEPS == 0:
                speed = (self.tokens - last[1]) / (time.time() - last[0])
                self.log(f"step {self.step} tokens {self.tokens} loss {sum(losses) / len(losses):.4f} "
                         f"lr_scale {scale:.3f} tokens/s {speed:.0f}")
                losses, last = [], (time.time(), self.tokens)
            if time.time() - saved > self.options.save_seconds:
                self.save()
                saved = time.time()
            if time.time() - evaluated > self.options.evaluate_seconds:
                self.evaluate(25)
                evaluated = time.time()
        self.finish()

    def finish(self):
        self.save()
        if self.first:
            save_checkpoint(self.model, self.options.out, self.options.out)
            self.model = load(self.options.out)
        self.evaluate(100)
        self.log(f"finished: {self.step} steps, {self.tokens} tokens, {self.clock.spent() / 60:.1f} minutes")


def process(rank, options):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(options.port))
    distributed.init_process_group("gloo", rank=rank, world_size=options.processes)
    Run(rank, options).train()
    distributed.barrier()
    distributed.destroy_process_group()


def train(options):
    options.work.mkdir(parents=True, exist_ok=True)
    with open(options.log, "a") as log:
        parameters = sum(each.numel() for each in Pocket().parameters())
        log.write(f"pocket: {parameters} parameters, seed {options.seed}, {options.processes} processes, "
                  f"{options.processes * TOKENS_PER_BATCH} tokens a step, torch {torch.__version__}\n")
    torch.multiprocessing.spawn(process, args=(options,), nprocs=options.processes)


@torch.no_grad()
def check(options):
    """Asserts that network and tokenizer agree with transformers on held-out rows."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours, encoder = load(options.directory), Encoder(options.directory)
    theirs = AutoModelForCausalLM.from_pretrained(options.directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.directory)
    worst = 0.0
    for rows in held_out(3).values():
        for prompt, _ in rows:
            messages = [{"role": "user", "content": prompt}]
            ids = encoder.prompt(messages)
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert tokenizer(text, add_special_tokens=False).input_ids == ids, prompt
            batch = torch.tensor([ids])
            logits = ours.logits(ours.hidden(batch, torch.arange(len(ids))[None]))
            worst = max(worst, (logits - theirs(batch).logits).abs().max().item())
    assert worst < 1e-3, worst
    print(f"equal to transformers: largest difference of a logit {worst:.1e}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = arguments.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.add_argument("--out", type=Path, required=True, help="holds the tokenizer, receives the model")
    training.add_argument("--work", type=Path, required=True, help="receives the resumable state")
    training.add_argument("--early", type=Path, required=True, help="receives intermediate checkpoints")
    training.add_argument("--log", type=Path, required=True)
    training.add_argument("--minutes", type=float, default=50)
    training.add_argument("--processes", type=int, default=os.cpu_count())
    training.add_argument("--seed", type=int, default=1)
    training.add_argument("--port", type=int, default=29555)
    training.add_argument("--save-seconds", type=float, default=120)
    training.add_argument("--evaluate-seconds", type=float, default=480)
    training.add_argument("--resume", action="store_true")
    training.add_argument("--no-compile", dest="compile", action="store_false")
    training.set_defaults(run=train)
    checking = commands.add_parser("check")
    checking.add_argument("directory", type=Path)
    checking.set_defaults(run=check)
    options = arguments.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
