"""Golden logits, loss and gradients of LoRA's variants from PyTorch + PEFT, for tests/lora_variants.rs.

DoRA, ranks and scales that differ from layer to layer, rsLoRA; over small models of families.py with biases, fused
matrices and norms of heads. Lengths of DoRA's rows are hashed too, between 0.9 and 1.1 times the row's own.

    OMP_NUM_THREADS=1 python scripts/golden/lora_variants.py     writes crates/model/tests/golden/variant_*.json
"""

import json
import platform
import tempfile

import numpy as np
import peft
import torch
import transformers

import families
from lora_gradients import OUT, ROOT, adapter_weight, base_weight

VARIANTS = {
    "dora_qwen2": ("qwen2", dict(r=8, lora_alpha=16, use_dora=True, target_modules="all-linear")),
    "dora_phi3": ("phi3_window", dict(r=4, lora_alpha=4, use_dora=True, use_rslora=True,
                                      target_modules=["qkv_proj", "down_proj"])),
    "dora_starcoder2": ("starcoder2", dict(r=8, lora_alpha=8, use_dora=True, target_modules="all-linear")),
    "ranks_qwen3": ("qwen3", dict(r=8, lora_alpha=16, use_rslora=True,
                                  rank_pattern={"down_proj": 12, r"layers\.0\.self_attn\.q_proj": 2},
                                  alpha_pattern={r"layers\.1\.mlp\.gate_proj": 5, "down_proj": 24},
                                  target_modules=r".*(layers\.0\.self_attn\.[qv]_proj|mlp\.(gate|down)_proj)")),
}


def length(name, rows):
    """Factors on the lengths of the rows."""
    return 1.0 + 0.1 * base_weight(name, (rows, 3))[:, 0]


def build(family, options):
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/config.json", "w") as file:
            json.dump(families.FAMILIES[family], file)
        config = transformers.AutoConfig.from_pretrained(folder)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(base_weight(name, tuple(parameter.shape))))
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **options))
    shapes = {}
    with torch.no_grad():
        for name, parameter in adapters(model):
            if "magnitude" in name:
                parameter.mul_(torch.from_numpy(length(name, parameter.numel()).astype(np.float32)))
            else:
                parameter.copy_(torch.from_numpy(adapter_weight(name, tuple(parameter.shape))))
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            alpha = module.scaling["default"] * (module.r["default"] ** (0.5 if options.get("use_rslora") else 1))
            shapes[name.removeprefix("base_model.model.")] = (module.r["default"], alpha)
    model.eval()
    return model, config, shapes


def adapters(model):
    """Names as in the saved directory."""
    def rename(name):
        return name.replace(".default.weight", "" if "magnitude" in name else ".weight")
    return [(rename(name), parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def main():
    versions = dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__,
                    peft=peft.__version__, numpy=np.__version__)
    families.adapters = lambda _, model: adapters(model)
    for variant, (family, options) in VARIANTS.items():
        print(variant)
        model, config, shapes = build(family, options)
        cases = {case: families.run(family, model, config, case) for case in families.CASES}
        magnitudes = {name: families.short(parameter.detach())
                      for name, parameter in adapters(model) if "magnitude" in name}
        path = OUT / f"variant_{variant}.json"
        golden = dict(versions=versions, config=families.FAMILIES[family], dora=options.get("use_dora", False),
                      rank_stabilised=options.get("use_rslora", False), shapes=shapes, magnitudes=magnitudes,
                      cases=cases)
        text = json.dumps(golden, separators=(",", ":"))
        path.write_text(text.replace('"base_model', '\n"base_model').replace('{"row"', '\n{"row"') + "\n")
        print(f"  wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
