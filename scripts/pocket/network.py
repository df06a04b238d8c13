"""The pocket network: a small Qwen3 decoder in plain torch.

Same parameter names and same numbers as transformers' `Qwen3ForCausalLM` (checked by `pretrain.py check`), but fed
with packed rows: one sequence holds several documents, positions restart in each, and attention never crosses from
one document into another.

Letters: B batch, T tokens, C width, H heads, K key/value heads, D head width, V vocabulary.
"""

import json

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": 2047,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 768,
    "max_position_embeddings": 1024,
    "max_window_layers": 6,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "pad_token_id": 2045,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 2048,
}


class RmsNorm(nn.Module):
    """x / rms(x) * weight, computed in f32."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x.float(), self.weight.shape, self.weight, CONFIG["rms_norm_eps"]).to(x.dtype)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


def rotate(x, cos, sin):
    """Rotary embedding in the half-split layout of Hugging Face checkpoints; x (B, H, T, D)."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention with RMS norms on each query and key head."""

    def __init__(self):
        super().__init__()
        C, D = CONFIG["hidden_size"], CONFIG["head_dim"]
        self.H, self.K, self.D = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], D
        self.q_proj = linear(C, self.H * D)
        self.k_proj = linear(C, self.K * D)
        self.v_proj = linear(C, self.K * D)
        self.o_proj = linear(self.H * D, C)
        self.q_norm = RmsNorm(D)
        self.k_norm = RmsNorm(D)

    def forward(self, x, cos, sin, mask):
        B, T, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(B, T, self.H, self.D)).transpose(1, 2)  # (B, H, T, D)
        k = self.k_norm(self.k_proj(x).view(B, T, self.K, self.D)).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.K, self.D).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        groups = self.H // self.K
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, self.H * self.D))


class Mlp(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self):
        super().__init__()
        C, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        self.gate_proj, self.up_proj, self.down_proj = linear(C, inner), linear(C, inner), linear(inner, C)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm = RmsNorm(CONFIG["hidden_size"])
        self.self_attn = Attention()
        self.post_attention_layernorm = RmsNorm(CONFIG["hidden_size"])
        self.mlp = Mlp()

    def forward(self, x, cos, sin, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(CONFIG["vocab_size"], CONFIG["hidden_size"])
        self.layers = nn.ModuleList(Layer() for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = RmsNorm(CONFIG["hidden_size"])


class Pocket(nn.Module):
    """Token ids, positions and document numbers in; hidden states or the loss out. The head is the embedding."""

    def __init__(self):
        super().__init__()
        self.model = Decoder()
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=CONFIG["initializer_range"])
        # Residual branches start at zero: deep layers do not disturb the first, decisive steps.
        for layer in self.model.layers:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)
        D = CONFIG["head_dim"]
        frequencies = CONFIG["rope_theta"] ** (-torch.arange(0, D, 2).float() / D)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def hidden(self, ids, positions, documents=None):
        """Hidden states (B, T, C). `documents` (B, T) numbers the packed documents; None: one document a row."""
        angles = positions[:, None, :, None].float() * self.frequencies  # (B, 1, T, D/2)
        angles = torch.cat((angles, angles), dim=-1)
        x = self.model.embed_tokens(ids)
        if torch.is_autocast_enabled("cpu"):
            x = x.bfloat16()
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        T = ids.shape[1]
        mask = torch.ones(T, T, dtype=torch.bool).tril()[None, None]
        if documents is not None:
            mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])
        # An additive mask: torch's CPU attention kernel would convert a boolean one in every layer.
        mask = torch.zeros(mask.shape, dtype=x.dtype).masked_fill_(~mask, float("-inf"))
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        return self.model.norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.model.embed_tokens.weight)

    def loss(self, ids, positions, documents, chosen, targets, weights):
        """Weighted mean of the cross-entropy over `chosen`, flat indices of the positions that meet the head.

        Their number is fixed by the caller, so that the compiled step sees one shape only.
        """
        hidden = self.hidden(ids, positions, documents).flatten(0, 1)[chosen]
        losses = F.cross_entropy(self.logits(hidden).float(), targets, reduction="none")
        return (losses * weights).sum() / weights.sum()


def write_config(path):
    path.write_text(json.dumps(CONFIG, indent=2) + "\n")
