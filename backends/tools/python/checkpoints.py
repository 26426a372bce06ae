"""Writes the checkpoints that side_by_side.py trains.

    python checkpoints.py smollm2 HF_FOLDER OUT_FOLDER     SmolLM2-135M-Instruct as `karat import --gguf` leaves it, in bf16
    python checkpoints.py qwen3 OUT_FOLDER                 the shape of Qwen3-0.6B, random weights, bf16

Needs torch and safetensors.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024,
    "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "tie_word_embeddings": True, "attention_bias": False, "hidden_act": "silu", "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
}


def qwen3(out):
    c = QWEN3
    h, i, d = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return (torch.randn(*shape, generator=generator) * 0.02).to(torch.bfloat16)

    ones = lambda n: torch.ones(n, dtype=torch.bfloat16)
    tensors = {"model.embed_tokens.weight": draw(c["vocab_size"], h), "model.norm.weight": ones(h)}
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        tensors |= {
            p + "input_layernorm.weight": ones(h), p + "post_attention_layernorm.weight": ones(h),
            p + "self_attn.q_norm.weight": ones(d), p + "self_attn.k_norm.weight": ones(d),
            p + "self_attn.q_proj.weight": draw(q, h), p + "self_attn.k_proj.weight": draw(kv, h),
            p + "self_attn.v_proj.weight": draw(kv, h), p + "self_attn.o_proj.weight": draw(h, q),
            p + "mlp.gate_proj.weight": draw(i, h), p + "mlp.up_proj.weight": draw(i, h),
            p + "mlp.down_proj.weight": draw(h, i),
        }
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(c, indent=2))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def smollm2(source, out):
    tensors = {name: t.to(torch.bfloat16).contiguous() for name, t in load_file(source / "model.safetensors").items()}
    config = json.loads((source / "config.json").read_text())
    config["torch_dtype"] = "bfloat16"
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["qwen3", out]:
            qwen3(Path(out))
        case ["smollm2", source, out]:
            smollm2(Path(source), Path(out))
        case _:
            sys.exit(__doc__)
