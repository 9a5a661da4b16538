"""Writes golden-loaded.safetensors beside each model here: fp32 logits of the files as `from_pretrained` loads them.

golden.safetensors was written by the model object that made the files, after `model.bfloat16().save_pretrained(...)` and `model.float()`. That cast rounded
the RoPE buffer (inv_freq) to bf16 too, which no reader of the files can know and from_pretrained does not do; so those logits are reproduced only with inv_freq rounded
to bf16. This script shows both. Usage: make_golden.py OUT_DIR (torch, transformers, safetensors).
"""
import os
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

here = os.path.dirname(os.path.abspath(__file__))
for name in sorted(d for d in os.listdir(here) if os.path.isdir(f"{here}/{d}")):
    model = AutoModelForCausalLM.from_pretrained(f"{here}/{name}", dtype=torch.float32, attn_implementation="eager").eval()
    given = load_file(f"{here}/{name}/golden.safetensors")
    golden = {}
    for i in range(len(given) // 2):
        ids = given[f"{i}.ids"]

        def logits():
            with torch.no_grad():
                return model(ids[None].long()).logits[0].float().contiguous()

        rope = model.model.rotary_emb
        loaded, kept = logits(), rope.inv_freq.clone()
        rope.inv_freq = kept.bfloat16().float()
        rounded = logits()
        rope.inv_freq = kept
        error = lambda x: ((x - given[f"{i}.logits"]).norm() / given[f"{i}.logits"].norm()).item()
        print(f"{name:15} {len(ids):4} tokens: golden.safetensors differs by {error(loaded):.2e} as loaded, {error(rounded):.2e} with inv_freq rounded to bf16")
        golden |= {f"{i}.ids": ids, f"{i}.logits": loaded}
    os.makedirs(f"{sys.argv[1]}/{name}", exist_ok=True)
    save_file(golden, f"{sys.argv[1]}/{name}/golden-loaded.safetensors")
