#!/usr/bin/env python3
"""Makes crates/formats/tests/golden/peft_adapter, an adapter directory as PEFT itself saves it.

    peft_adapter.py OUT

Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2. The base is a one-layer Llama that is not saved;
A is 0, 1/64, 2/64, ... in row order and B is 0.
"""
import sys

import peft
import torch
import transformers

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
base = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
)
config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
model = peft.get_peft_model(base, config)
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) / 64)
model.save_pretrained(sys.argv[1])
