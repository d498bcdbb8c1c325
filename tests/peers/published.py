#!/usr/bin/env python3
"""Do the models of the paper (arXiv 2601.02151), by their published settings, give Transformers' numbers?

    cargo build --release && V/bin/python tests/peers/published.py target/release/diagnose [--vocabulary 8192] [--only GLM-4-9B-0414]

Each is made with two layers, random weights in bf16 and, as the whole would not fit in a small machine, with the first rows of its
vocabulary (0: with all); every other line of config.json is as it was published. Log-probability and entropy of the tokens of a text are compared
in f32. Exit code 1 beyond 1e-4.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as parquet
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

torch.set_grad_enabled(False)
torch.manual_seed(0)
TOKENIZER = Path(__file__).parent.parent / "fixtures" / "families" / "qwen3" / "tokenizer.json"
TEXT = "Supervised fine-tuning makes a model forget; 12 × 7 = 84, and “confident conflicts” are why. " * 4

COMMON = dict(
    attention_dropout=0.0, hidden_act="silu", initializer_range=0.02, use_cache=True, torch_dtype="bfloat16", transformers_version="4.51.0"
)
PUBLISHED = {
    "Qwen3-4B-Instruct-2507": dict(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", attention_bias=False, bos_token_id=151643, eos_token_id=151645,
        head_dim=128, hidden_size=2560, intermediate_size=9728, max_position_embeddings=262144, max_window_layers=36,
        num_attention_heads=32, num_hidden_layers=36, num_key_value_heads=8, rms_norm_eps=1e-6, rope_scaling=None, rope_theta=5000000,
        sliding_window=None, tie_word_embeddings=True, use_sliding_window=False, vocab_size=151936,
    ),
    "Qwen2.5-32B-Instruct": dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", bos_token_id=151643, eos_token_id=151645, hidden_size=5120,
        intermediate_size=27648, max_position_embeddings=32768, max_window_layers=70, num_attention_heads=40, num_hidden_layers=64,
        num_key_value_heads=8, rms_norm_eps=1e-6, rope_theta=1000000.0, sliding_window=131072, tie_word_embeddings=False,
        use_sliding_window=False, vocab_size=152064,
    ),
    "GLM-4-9B-0414": dict(
        architectures=["Glm4ForCausalLM"], model_type="glm4", attention_bias=False, eos_token_id=[151329, 151336, 151338],
        pad_token_id=151329, head_dim=128, hidden_size=4096, intermediate_size=13696, max_position_embeddings=32768,
        num_attention_heads=32, num_hidden_layers=40, num_key_value_heads=2, partial_rotary_factor=0.5, rms_norm_eps=1e-5,
        rope_theta=10000.0, tie_word_embeddings=False, vocab_size=151552,
    ),
}  # fmt: skip

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("diagnose")
parser.add_argument("--vocabulary", type=int, default=8192)
parser.add_argument("--only", nargs="*", default=PUBLISHED)
arguments = parser.parse_args()


def check(name, settings):
    settings = COMMON | settings | dict(num_hidden_layers=2)
    settings["vocab_size"] = arguments.vocabulary or settings["vocab_size"]
    # Ids beyond the rows that are left would be refused by Transformers.
    tokens = {key: None for key in settings if key.endswith("_token_id")} if arguments.vocabulary else {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "config.json").write_text(json.dumps(settings))
        shutil.copy(TOKENIZER, folder)
        config = AutoConfig.from_pretrained(folder)
        for key, value in tokens.items():
            setattr(config, key, value)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
        for parameter in model.parameters():
            # Norms and biases, too, are random, and all numbers are those of the file.
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            parameter.copy_(parameter.bfloat16())
        tied = settings["tie_word_embeddings"]
        tensors = {key: tensor.bfloat16() for key, tensor in model.state_dict().items() if not (tied and key == "lm_head.weight")}
        save_file(tensors, folder / "model.safetensors")
        del tensors
        ids = torch.tensor(Tokenizer.from_file(str(TOKENIZER)).encode(TEXT, add_special_tokens=False).ids)
        logits = model(ids[None]).logits[0].double().log_softmax(-1)
        del model
        (folder / "rows.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
        options = ["--model", str(folder), "--dtype", "f32", "--device", "cpu", "--max-len", "1024", "--out", str(folder / "run")]
        done = subprocess.run([arguments.diagnose, str(folder / "rows.jsonl"), *options], capture_output=True, text=True)
        if done.returncode != 0:
            print(f"{name:24} {done.stderr}")
            return False
        table = parquet.read_table(sorted(folder.glob("run/tokens*.parquet"))[0])
        pos, token, logprob, entropy = (torch.tensor(table[key].to_numpy()) for key in ("pos", "token_id", "logprob", "entropy"))
    pos = pos.long()
    known = pos < len(ids)
    assert (ids[pos[known]] == token.long()[known]).all() and known.sum() >= len(ids) - 1
    rows = logits[pos[known] - 1]
    errors = [
        (logprob[known] - rows.gather(1, ids[pos[known]][:, None])[:, 0]).abs().max().item(),
        (entropy[known] + (rows.exp() * rows).sum(-1)).abs().max().item(),
    ]
    print(f"{name:24} {known.sum()} tokens, max |d ln p| {errors[0]:.1e}, max |d entropy| {errors[1]:.1e}")
    return max(errors) <= 1e-4


sys.exit(not all([check(name, PUBLISHED[name]) for name in arguments.only]))
