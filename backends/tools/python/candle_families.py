#!/usr/bin/env python3
"""Asks transformers and peft for the numbers that the families of the candle backend must meet.

    python3 -m venv VENV && VENV/bin/pip install torch transformers peft safetensors numpy
    VENV/bin/python backends/tools/python/candle_families.py            # writes backends/candle/tests/families.json
    VENV/bin/python backends/tools/python/candle_families.py --check    # exit 1 if that file says otherwise

Each model is tiny and has what is peculiar to its family: a window shorter than the rows, soft caps, grouped heads, biases,
experts, multipliers, a rotated part of each head. Its weights and its adapter are drawn by the rule of
`config_references.py` under the names that transformers saves, and loaded from that file. Stored are the
names and shapes of the tensors, log-probabilities of rows with and without the adapter, and what follows the first row
greedily.
"""

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from config_references import rounded, row, weight, worst

OUT = Path(__file__).resolve().parents[2] / "candle" / "tests" / "families.json"
NEW = 12
LENGTHS = [30, 3, 80]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

BASE = {
    "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 61, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}
GEMMA = {**BASE, "head_dim": 16, "num_hidden_layers": 3, "tie_word_embeddings": True, "query_pre_attn_scalar": 24,
         "hidden_activation": "gelu_pytorch_tanh"}
MOE = {**BASE, "num_hidden_layers": 3, "hidden_act": "silu", "num_experts": 6, "num_experts_per_tok": 2,
       "moe_intermediate_size": 24, "output_router_logits": False}
MODELS = {
    "Mistral": {**BASE, "model_type": "mistral", "head_dim": 24, "hidden_act": "silu", "sliding_window": 12},
    "Mistral without a window, tied": {
        **BASE, "model_type": "mistral", "hidden_act": "silu", "sliding_window": None, "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "Gemma 2": {**GEMMA, "model_type": "gemma2", "sliding_window": 12, "attn_logit_softcapping": 2.0,
                "final_logit_softcapping": 3.0, "attention_bias": True},
    "Gemma 3": {**GEMMA, "model_type": "gemma3_text", "sliding_window": 12, "sliding_window_pattern": 2,
                "rope_theta": 1000000.0, "rope_local_base_freq": 5000.0,
                "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "Gemma 3 of version 5": {
        **{key: value for key, value in GEMMA.items() if key != "rope_theta"}, "model_type": "gemma3_text",
        "sliding_window": 9, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "final_logit_softcapping": 4.0, "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 500000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 8000.0}}},
    "Phi-3": {**BASE, "model_type": "phi3", "hidden_act": "silu", "sliding_window": 12},
    "Phi-3 with LongRoPE": {
        **BASE, "model_type": "phi3", "hidden_act": "silu", "sliding_window": None, "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 36, "rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.4, 1.7, 2.1],
            "long_factor": [1.0, 1.5, 2.5, 6.0, 11.0, 20.0]}},
    "Qwen2-MoE": {**MOE, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 40, "norm_topk_prob": False,
                  "decoder_sparse_step": 1, "mlp_only_layers": [1], "use_sliding_window": False, "sliding_window": 12,
                  "max_window_layers": 2},
    "Qwen2-MoE with windows": {
        **MOE, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 40, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "use_sliding_window": True, "sliding_window": 12, "max_window_layers": 2,
        "qkv_bias": False},
    "Qwen3-MoE": {**MOE, "model_type": "qwen3_moe", "head_dim": 24, "norm_topk_prob": True, "decoder_sparse_step": 2,
                  "attention_bias": True, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2},
    "GLM-4": {**BASE, "model_type": "glm4", "head_dim": 24, "hidden_act": "silu", "partial_rotary_factor": 0.5,
              "attention_bias": True},
    "GLM-4 9B": {**BASE, "model_type": "glm", "head_dim": 16, "hidden_act": "silu", "attention_bias": True},
    "Granite": {**BASE, "model_type": "granite", "hidden_act": "silu", "attention_bias": True, "mlp_bias": True,
                "embedding_multiplier": 6.0, "attention_multiplier": 0.07, "residual_multiplier": 0.4,
                "logits_scaling": 3.0, "tie_word_embeddings": True},
    "OLMo 2": {**BASE, "model_type": "olmo2", "hidden_act": "silu", "attention_bias": True},
}
# Rows that go through the decoder in several pieces.
LONG = {"Mistral": 560, "Gemma 2": 560}
TARGETS = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], "glm4": [*ALL[:4], "gate_up_proj", "down_proj"],
    "glm": [*ALL[:4], "gate_up_proj", "down_proj"], "qwen3_moe": ALL[:4],
    "qwen2_moe": [*ALL[:4], "shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj"],
}


def shapes_in(file):
    with safe_open(file, "np") as tensors:
        return {name: list(tensors.get_slice(name).get_shape()) for name in sorted(tensors.keys())}


def draw(file):
    """Replaces the tensors in a file by drawn ones; returns their names and shapes."""
    shapes = shapes_in(file)
    save_file({name: weight(name, shape).contiguous() for name, shape in shapes.items()}, file, metadata={"format": "pt"})
    return shapes


def opened(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                experts_implementation="eager").double().eval()


def logprobs(model, rows):
    scores = []
    with torch.no_grad():
        for ids in rows:
            table = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].double(), -1)
            scores.append([table[i, token].item() for i, token in enumerate(ids[1:])])
    return scores


def asked(name, raw, folder):
    folder = Path(folder)
    base, lora = folder / "base", folder / "adapter"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**copy.deepcopy(raw)), dtype=torch.float32)
    model.save_pretrained(base)
    tensors = draw(base / "model.safetensors")
    # As it was written by a person, not as transformers writes it.
    (base / "config.json").write_text(json.dumps(raw))
    model = opened(base)
    rows = [row(length) for length in [*LENGTHS, *([LONG[name]] if name in LONG else [])]]
    scores = logprobs(model, rows)
    prompt = torch.tensor([rows[0]])
    follows = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW,
                             pad_token_id=0, eos_token_id=None)
    config = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=TARGETS.get(raw["model_type"], ALL))
    get_peft_model(model, config).save_pretrained(lora)
    adapter = draw(lora / "adapter_model.safetensors")
    adapted = logprobs(PeftModel.from_pretrained(opened(base), lora).double().eval(), rows[:1])
    # A set and a path here and now would make every run another one.
    stored = json.loads((lora / "adapter_config.json").read_text())
    stored |= {"base_model_name_or_path": None, "target_modules": sorted(stored["target_modules"])}
    return {
        "name": name, "config": raw, "tensors": tensors, "rows": rows, "logprobs": scores,
        "follows": follows[0, len(rows[0]):].tolist(),
        "adapter": {"config": stored, "tensors": adapter, "logprobs": adapted},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the stored file instead of writing it")
    args = parser.parse_args()
    models = []
    for name, raw in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            models.append(rounded(asked(name, raw, folder)))
    if args.check:
        off = worst(json.loads(OUT.read_text())["models"], models)
        print(f"largest relative difference {off:.1e}")
        sys.exit(off > 1e-5)
    lines = ",\n".join(json.dumps(model) for model in models)
    OUT.write_text(f'{{"models": [\n{lines}\n]}}\n')
    print(f"{OUT}: {len(models)} models, {OUT.stat().st_size} bytes")


main()
