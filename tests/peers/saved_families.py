#!/usr/bin/env python3
"""Does Transformers load what diagnose saves, of every family, from folders and from GGUF?

    cargo build --release && V/bin/python tests/peers/saved_families.py target/release/diagnose

Each fixture of tests/fixtures/families is trained for one step with learning rate 0 and saved; Transformers loads the result, and
its logits are compared with those that it gave the fixture itself. Exit code 1 beyond 1e-4, or if a tensor is missing or unknown.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

torch.set_grad_enabled(False)
FIXTURES = Path(__file__).parent.parent / "fixtures" / "families"
NOTHING = ["--lr", "1e-30", "--warmup-steps", "0", "--weight-decay", "0", "--max-steps", "1", "--max-len", "128", "--dtype", "f32"]


def check(source, expected):
    with tempfile.TemporaryDirectory() as scratch:
        rows, out = Path(scratch, "rows.jsonl"), Path(scratch, "out")
        rows.write_text('{"text": "some plain words"}\n' * 4)
        model = source
        if source.is_dir():
            # Training looks at general text, which begins with a special token.
            model = shutil.copytree(source, Path(scratch, "model"))
            (model / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}')
        command = [sys.argv[1], "train", str(rows), "--model", str(model), "--out", str(out), *NOTHING]
        subprocess.run(command, check=True, capture_output=True)
        model, found = AutoModelForCausalLM.from_pretrained(
            out / "model", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    tensors = load_file(expected)
    error = lambda i: (model.eval()(tensors[f"ids.{i}"][None]).logits[0] - tensors[f"logits.{i}"]).abs().max().item()
    worst = max(error(i) for i in range(3))
    strange = sorted(found["missing_keys"]) + sorted(found["unexpected_keys"])
    print(f"{str(source.relative_to(FIXTURES)):30} max |dlogit| {worst:.1e} {strange or ''}")
    return worst <= 1e-4 and not strange


sources = [path for folder in sorted(FIXTURES.iterdir()) for path in (folder, folder / "model.gguf") if path.exists() and folder.is_dir()]
results = [check(path, (path if path.is_dir() else path.parent) / "logits.safetensors") for path in sources]
sys.exit(not all(results))
