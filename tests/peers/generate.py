#!/usr/bin/env python3
"""Answers side by side: `diagnose rollout` and Transformers' `generate`, the same prompts and model folder.

    V/bin/python tests/peers/generate.py ROWS.jsonl --folder HF_FOLDER [--rows 20] [--tokens 64] [--dtype f32] [--diagnose target/release/diagnose]

ROWS.jsonl holds questions in any format that `diagnose` reads; the prompts are those of its run, as token ids that are rendered here by
Transformers from the messages of rollouts.jsonl. Greedy answers must be equal, token for token; where one is not, the two logits between which
it differs are shown. With --speed N it also times one answer, and 3 N of them with N at once, greedy, ended by the end token or --tokens:
Transformers takes N prompts at a time, padded on the left, and goes on until the last has ended; `diagnose` gives the place of an answer that
has ended to the next prompt. Rates are tokens of answers, without the padding behind them, by the whole time; --rows at least 3 N.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("rows")
parser.add_argument("--folder", required=True)
parser.add_argument("--rows-wanted", "--rows", dest="n", type=int, default=20)
parser.add_argument("--tokens", type=int, default=64)
parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--speed", type=int, default=0)
parser.add_argument("--diagnose", default="target/release/diagnose")
options = parser.parse_args()

torch.set_grad_enabled(False)
torch.set_num_threads(options.threads)
tokenizer = AutoTokenizer.from_pretrained(options.folder)
model = AutoModelForCausalLM.from_pretrained(options.folder, dtype={"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype])
model.eval()

with tempfile.TemporaryDirectory() as folder:
    command = [options.diagnose, "rollout", options.rows, "--model", options.folder, "--limit", str(options.n), "--temperature", "0",
               "--max-new-tokens", str(options.tokens), "--dtype", options.dtype, "--out", folder + "/run"]
    subprocess.run(command, check=True, capture_output=True)
    rows = [json.loads(line) for line in open(folder + "/run/rollouts.jsonl")]

prompts = []
for row in rows:
    ids = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    prompts.append(ids)
equal = 0
for row, prompt in zip(rows, prompts):
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=options.tokens, do_sample=False, pad_token_id=0)
    theirs, ours = out[0, len(prompt):].tolist(), row["rollout"]["ids"]
    if theirs == ours:
        equal += 1
        continue
    at = next((i for i, (a, b) in enumerate(zip(theirs, ours)) if a != b), min(len(theirs), len(ours)))
    logits = model(torch.tensor([prompt + theirs[:at]])).logits[0, -1].float()
    print(f"row {row['rollout']['row']}: differs at token {at}: {theirs[at:at + 1]} and {ours[at:at + 1]}, "
          f"logits {[round(float(logits[i]), 5) for i in theirs[at:at + 1] + ours[at:at + 1]]}")
print(f"{equal} of {len(rows)} greedy answers of {options.tokens} tokens are equal ({options.dtype})")

if options.speed:
    end = model.generation_config.eos_token_id
    for n, total in ((1, 1), (options.speed, 3 * options.speed)):
        some = prompts[:total]
        n_theirs, seconds = 0, 0.0
        for first in [-1, *range(0, len(some), n)]:
            # The first time, with few tokens, is not counted.
            batch = some[max(first, 0):max(first, 0) + n]
            width = max(map(len, batch))
            ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in batch])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
            began = time.perf_counter()
            out = model.generate(ids, attention_mask=mask, max_new_tokens=4 if first < 0 else options.tokens, do_sample=False, pad_token_id=0)
            if first < 0:
                continue
            seconds += time.perf_counter() - began
            ends = end if isinstance(end, list) else [end]
            for answer in out[:, width:].tolist():
                n_theirs += next((i + 1 for i, id in enumerate(answer) if id in ends), len(answer))
        theirs = n_theirs / seconds
        with tempfile.TemporaryDirectory() as folder:
            command = [options.diagnose, "rollout", options.rows, "--model", options.folder, "--limit", str(total), "--temperature", "0", "--json",
                       "--max-new-tokens", str(options.tokens), "--dtype", options.dtype, "--batch", str(n), "--out", folder + "/run"]
            run = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        ours = run["tokens_per_second"]
        print(f"{total} answers, {n} at once: diagnose {ours:.0f} tokens/s, Transformers {theirs:.0f} ({n_theirs} tokens), ratio {ours / theirs:.2f} ({options.dtype})")
