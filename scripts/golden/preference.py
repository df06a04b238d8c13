"""Golden losses and LoRA gradients of preference training from TRL, and of weighted targets from PyTorch.

The losses are those of TRL's own trainers, whose functions are called on trainers that hold nothing but a model and
the options: DPOTrainer._compute_loss (the adapter off is its reference model), ORPOTrainer.get_batch_loss_metrics.
Where TRL has something else than we have, the case says what stands in for it. The model is the small Llama of
families.py with an adapter far from zero, in f32; its weights are hashed as in lora_gradients.py.

    OMP_NUM_THREADS=1 python scripts/golden/preference.py     writes crates/model/tests/golden/preference.json

Versions that made the committed file stand in it under "versions".
"""

import collections
import json
import os
import platform
import types

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import accelerate
import peft
import torch
import transformers
import trl
from torch.nn.functional import cross_entropy
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

import families
from lora_gradients import IGNORE, OUT, ROOT, tokens

FAMILY = "llama3"
# Tokens of prompt, chosen and rejected answer of each pair.
PAIRS = {"pairs": [(12, 20, 9), (5, 3, 31), (30, 17, 17)], "short_prompts": [(1, 24, 10), (1, 6, 40)]}
WEIGHTS = [1.0, 0.25, 0.0, 2.0, -0.5]


def pairs_of(name, vocab_size):
    pairs, ids = [], tokens(name, sum(map(sum, PAIRS[name])), vocab_size)
    for lengths in PAIRS[name]:
        pair = []
        for length in lengths:
            pair.append(ids[:length])
            ids = ids[length:]
        pairs.append(pair)
    return pairs


def padded(sequences, value):
    longest = max(map(len, sequences))
    return torch.tensor([row + [value] * (longest - len(row)) for row in sequences])


def sequences(pairs):
    """Chosen conversations, then rejected ones."""
    return [p + c for p, c, _ in pairs] + [p + r for p, _, r in pairs]


def dpo(model, pairs, beta, loss_types, loss_weights, label_smoothing=0.0):
    trainer = object.__new__(DPOTrainer)
    trainer.accelerator = accelerate.Accelerator(cpu=True)
    trainer.model, trainer.ref_model = model, None
    trainer.args = types.SimpleNamespace(gradient_checkpointing_kwargs=None, gradient_checkpointing=False)
    trainer.beta, trainer.loss_types, trainer.loss_weights = beta, loss_types, loss_weights
    trainer.label_smoothing, trainer.ld_alpha, trainer.f_divergence_type = label_smoothing, None, "reverse_kl"
    trainer.precompute_ref_logps = trainer.aux_loss_enabled = trainer.use_weighting = False
    trainer._metrics = collections.defaultdict(lambda: collections.defaultdict(list))
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    answers = [[0] * len(p) + [1] * len(c) for p, c, _ in pairs] + [[0] * len(p) + [1] * len(r) for p, _, r in pairs]
    rows = sequences(pairs)
    inputs = dict(input_ids=padded(rows, 0), attention_mask=padded([[1] * len(row) for row in rows], 0),
                  completion_mask=padded(answers, 0))
    loss = trainer._compute_loss(model, inputs, False)
    return loss, {key: values[-1] for key, values in trainer._metrics["eval"].items()}


def conservative_dpo(model, pairs, beta, label_smoothing):
    """TRL's "sigmoid" lost its label smoothing; of a single pair "aot" is the same, and its mean over pairs is ours."""
    found = [dpo(model, [pair], beta, ["aot"], [1.0], label_smoothing) for pair in pairs]
    mean = lambda values: sum(values) / len(found)
    return mean([loss for loss, _ in found]), {key: mean([m[key] for _, m in found]) for key in found[0][1]}


def orpo(model, pairs, beta):
    """TRL takes the chosen answers' own loss over the prompts too: that of the answers stands in for it."""
    trainer = object.__new__(ORPOTrainer)
    trainer.accelerator = accelerate.Accelerator(cpu=True)
    trainer.beta, trainer.is_encoder_decoder, trainer.aux_loss_enabled = beta, False, False
    trainer.padding_value = 0
    batch = {}
    for side, index in [("chosen", 1), ("rejected", 2)]:
        rows = [pair[0] + pair[index] for pair in pairs]
        batch[f"{side}_input_ids"] = padded(rows, 0)
        batch[f"{side}_attention_mask"] = padded([[1] * len(row) for row in rows], 0)
        batch[f"{side}_labels"] = padded([[IGNORE] * len(p[0]) + p[index] for p in pairs], IGNORE)
    loss, metrics = trainer.get_batch_loss_metrics(model, batch, "eval")
    logits = model(batch["chosen_input_ids"], attention_mask=batch["chosen_attention_mask"], use_cache=False).logits
    whole = torch.where(batch["chosen_attention_mask"] == 1, batch["chosen_input_ids"], IGNORE)
    nll = lambda labels: cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
    of_whole, of_answers = nll(whole), nll(batch["chosen_labels"])
    assert abs(of_whole.item() - metrics["eval_nll_loss"]) < 1e-5, "TRL takes something else"
    metrics["eval_nll_loss"] = of_answers.item()
    return loss - of_whole + of_answers, {key.removeprefix("eval_"): value for key, value in metrics.items()}


def weighted(model, pairs):
    """The chosen conversations, every target of which is weighted, over the sum of the weights."""
    loss, total, place = 0.0, 0.0, 0
    for row in sequences(pairs)[: len(pairs)]:
        logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
        weights = torch.tensor([WEIGHTS[(place + i) % len(WEIGHTS)] for i in range(len(row) - 1)])
        loss = loss + (weights * cross_entropy(logits[:-1], torch.tensor(row[1:]), reduction="none")).sum()
        total, place = total + weights.sum().item(), place + len(row)
    return loss / total, {}


METRICS = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
           "logps/rejected", "nll_loss"]


def main():
    model, config = families.build(FAMILY)
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    found = {}

    def case(name, pairs, run, **options):
        model.zero_grad(set_to_none=True)
        ids = pairs_of(pairs, config.vocab_size)
        loss, metrics = run(ids)
        loss.backward()
        gradients = {}
        for key, parameter in families.adapters(FAMILY, model):
            flat = parameter.grad.double().flatten()
            samples = flat[:: max(1, flat.numel() // families.SAMPLES)][: families.SAMPLES]
            gradients[key] = dict(norm=flat.norm().item(), sum=flat.sum().item(), samples=families.short(samples))
        kept = {key.replace("/", "_"): metrics[key] for key in METRICS if key in metrics}
        found[name] = dict(options, pairs=ids, loss=loss.item(), metrics=kept, gradients=gradients)
        print(f"  {name}: loss {loss.item():.6f} {kept}")

    case("dpo", "pairs", lambda p: dpo(model, p, 0.1, ["sigmoid"], [1.0]), beta=0.1)
    case("dpo_rpo", "pairs", lambda p: dpo(model, p, 0.5, ["sigmoid", "sft"], [1.0, 1.5]), beta=0.5, rpo_alpha=1.5)
    case("dpo_conservative", "pairs", lambda p: conservative_dpo(model, p, 0.3, 0.2), beta=0.3, label_smoothing=0.2)
    case("orpo", "pairs", lambda p: orpo(model, p, 0.1), beta=0.1)
    case("orpo_short_prompts", "short_prompts", lambda p: orpo(model, p, 1.0), beta=1.0)
    case("weighted", "pairs", lambda p: weighted(model, p), weights=WEIGHTS)

    versions = dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__,
                    peft=peft.__version__, trl=trl.__version__)
    path = OUT / "preference.json"
    golden = dict(versions=versions, config=families.FAMILIES[FAMILY], cases=found)
    text = json.dumps(golden, separators=(",", ":"))
    path.write_text(text.replace('"base_model', '\n"base_model') + "\n")  # a line for each gradient
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
