"""The same training and decoding as `karat-tools gpu`, by transformers and peft: one JSON object a line.

Full training: f32 parameters under bf16 autocast (what Karat computes), and all in bf16, which is faster and rounds more.
LoRA: the base in bf16, adapters in f32. Attention is PyTorch's own (SDPA); AdamW is fused.

    python gpu_reference.py [tokens=2048] [steps=12]
"""

import json
import sys
import time

import torch
import transformers

args = dict(arg.split("=", 1) for arg in sys.argv[1:] if "=" in arg)
tokens, steps = int(args.get("tokens", 2048)), int(args.get("steps", 12))
device = "cuda"


def model(dtype):
    config = transformers.Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, vocab_size=151936, max_position_embeddings=40960, rope_theta=1e6, tie_word_embeddings=True,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(3)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        made = transformers.Qwen3ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return made


def operations(full):
    layer = 1024 * (2 * 2048 + 2 * 1024) + 3 * 1024 * 3072
    return (28 * layer + 151936 * 1024) * (6.0 if full else 4.0) + 6 * 28 * 2048 * tokens


def train(who, dtype, method, recompute):
    net = model(dtype)
    autocast = dtype == torch.float32
    if method == "lora":
        import peft

        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        net = peft.get_peft_model(net, peft.LoraConfig(r=8, lora_alpha=32, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"))
        autocast = True
        if recompute:
            net.enable_input_require_grads()
    net.train()
    if recompute:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    times = []
    for step in range(steps):
        if step == 2:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        ids = torch.randint(0, 151936, (1, tokens), device=device)
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = net(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        if step >= 2:
            times.append(time.perf_counter() - started)
    times.sort()
    rate = tokens / times[len(times) // 2]
    flops = rate * operations(method == "full")
    print(json.dumps({
        "section": "train", "who": who, "method": method, "recompute": recompute, "tokens": tokens, "tokens_per_second": rate,
        "step_ms": [times[0] * 1e3, times[len(times) // 2] * 1e3, times[-1] * 1e3], "tflops": flops / 1e12,
        "mfu_of_989": flops / 989e12, "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }), flush=True)


@torch.no_grad()
def decode(batch, prompt=128, new=128):
    net = model(torch.bfloat16).eval()
    ids = torch.randint(0, 151936, (batch, prompt), device=device)

    def run(count):
        torch.cuda.synchronize()
        started = time.perf_counter()
        net.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(ids))
        torch.cuda.synchronize()
        return time.perf_counter() - started

    run(4)
    short, long = run(2), run(new + 2)
    print(json.dumps({
        "section": "decode", "who": "transformers", "batch": batch, "prompt": prompt, "new": new,
        "tokens_per_second": batch * new / (long - short), "ms_a_step": (long - short) / new * 1e3,
    }), flush=True)


for method, who, dtype in [("full", "torch autocast", torch.float32), ("full", "torch bf16", torch.bfloat16), ("lora", "peft", torch.bfloat16)]:
    for recompute in [True, False]:
        try:
            train(who, dtype, method, recompute)
        except Exception as error:  # one that fails leaves the others
            print(f"{who} {method} recompute={recompute}: {error}", file=sys.stderr)
        torch.cuda.empty_cache()
for batch in [1, 8, 64]:
    try:
        decode(batch)
    except Exception as error:
        print(f"decode {batch}: {error}", file=sys.stderr)
