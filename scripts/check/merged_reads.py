#!/usr/bin/env python3
"""A merged checkpoint through transformers: it loads, its weights are PEFT's own merge, and it answers.

    tune export RUN --as merged-hf --out OUT && scripts/check/merged_reads.py BASE RUN/adapter OUT/NAME-merged "A prompt"

Needs torch, transformers and peft. Prints the largest difference of a weight from PEFT's merge in 32 bits, as a part of
what rounding to bf16 may take (2^-8 of it) and of the error of sums in 32 bits (1e-6 of the matrix' largest), and the merged
model's answer; ends with 1 where a weight is further off.
"""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base_dir, adapter_dir, merged_dir, prompt = sys.argv[1:]
merged = AutoModelForCausalLM.from_pretrained(merged_dir, dtype=torch.float32)
base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
expected = dict(PeftModel.from_pretrained(base, adapter_dir).merge_and_unload().named_parameters())

worst = 0.0
for name, weight in merged.named_parameters():
    reference = expected[name].detach()
    allowed = reference.abs() / 256 + 1e-6 * reference.abs().max()
    worst = max(worst, ((weight.detach() - reference).abs() / allowed).max().item())
print(f"weights   {len(expected)} tensors, off from PEFT's merge by at most {worst:.2f} of what rounding may take")

tokenizer = AutoTokenizer.from_pretrained(merged_dir)
messages = [{"role": "user", "content": prompt}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = merged.generate(**ids, max_new_tokens=64, do_sample=False)[0][ids["input_ids"].shape[1] :]
print(f"answer    {tokenizer.decode(answer)}")
sys.exit(int(worst > 1.0))
