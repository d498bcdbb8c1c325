#!/usr/bin/env python3
"""Tokens of answers a second: by diagnose and by Transformers' generate, on the same prompts and card.

    python written.py ours BINARY MODEL ROWS.jsonl --at-once 1 16 64 --out FOLDER [--device cuda] [--errors FILE]
    python written.py peer MODEL ROWS.jsonl --at-once 1 16 64 [--device cuda]
    python written.py alike BINARY MODEL ROWS.jsonl --out FOLDER [--device cuda] [--errors FILE]

ROWS holds {"text": ..}; a prompt is the beginning of a text, of --words words (40). Answers are greedy, all of --tokens (128), in bf16. Prints one
JSON object for each number of answers at once, as soon as it is measured.

diagnose answers four times as many prompts as it has under way; its rate is that of run.json, from the loaded model to the last answer, and
so with cuBLASLt's choices of algorithms and the loading of kernels. Transformers (sdpa, cache, padding on the left, no end token)
answers as many as it has at once, after one run that is not measured.

alike: 32 answers by diagnose, one at a time and 64 at once; fails unless they are the same.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 4


def prompts(path, words, n):
    texts = [" ".join(json.loads(line)["text"].split()[:words]) for line in Path(path).read_text().splitlines()]
    return [f"{i} {texts[i % len(texts)]}" for i in range(n)]


def rollout(arguments, n, at_once):
    """diagnose's answers to so many prompts: what came of the process, how long it took, and the run folder."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows, out = arguments.out / "prompts.jsonl", arguments.out / "run"
    texts = prompts(arguments.rows, arguments.words, n)
    rows.write_text("".join(json.dumps({"prompt": text, "completion": "-"}) + "\n" for text in texts))
    shutil.rmtree(out, ignore_errors=True)
    command = [arguments.binary, "rollout", str(rows), "--model", str(arguments.model), "--device", arguments.device, "--dtype", "bf16"]
    command += ["--temperature", "0", "--max-new-tokens", str(arguments.tokens), "--batch", str(at_once), "--out", str(out)]
    began = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    seconds = time.perf_counter() - began
    if arguments.errors:
        with arguments.errors.open("a") as to:
            to.write(f"$ {' '.join(command[1:])}\n{done.stderr}\n")
    return done, seconds, out


def alike(arguments):
    found = []
    for at_once in (1, 64):
        done, _, out = rollout(arguments, 32, at_once)
        if done.returncode:
            print(json.dumps({"model": arguments.model.name, "rc": done.returncode, "error": done.stderr.strip()[-1500:]}))
            sys.exit(1)
        found.append((out / "rollouts.jsonl").read_text().splitlines())
    alone, together = found
    same = sum(a == b for a, b in zip(alone, together))
    print(json.dumps({"model": arguments.model.name, "rc": 0, "answers": len(alone), "same": same}))
    sys.exit(0 if alone == together and alone else 1)


def ours(arguments):
    failed = 0
    for at_once in arguments.at_once:
        done, seconds, out = rollout(arguments, ROUNDS * at_once, at_once)
        result = {"who": "diagnose", "model": arguments.model.name, "at_once": at_once, "rc": done.returncode}
        result["whole_seconds"] = seconds
        if done.returncode:
            failed, result["error"] = 1, done.stderr.strip()[-1500:]
        else:
            run = json.loads((out / "run.json").read_text())
            result |= {key: run[key] for key in ("tokens_per_second", "seconds", "written", "counts", "device")}
        print(json.dumps(result), flush=True)
    sys.exit(failed)


def peer(arguments):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16, attn_implementation="sdpa")
    model = model.to(arguments.device).eval()
    wait = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    for at_once in arguments.at_once:
        batch = tokenizer(prompts(arguments.rows, arguments.words, at_once), return_tensors="pt", padding=True).to(arguments.device)
        batch.pop("token_type_ids", None)

        def write(tokens):
            wait()
            began = time.perf_counter()
            with torch.inference_mode():
                written = model.generate(
                    **batch, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=tokenizer.pad_token_id
                )
            wait()
            assert written.shape[1] == batch["input_ids"].shape[1] + tokens
            return time.perf_counter() - began

        write(8)
        seconds = write(arguments.tokens)
        result = {"who": "Transformers", "model": arguments.model.name, "at_once": at_once, "rc": 0}
        print(json.dumps(result | {"seconds": seconds, "tokens_per_second": at_once * arguments.tokens / seconds}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    who = parser.add_subparsers(required=True)
    for name, run in (("ours", ours), ("alike", alike), ("peer", peer)):
        of = who.add_parser(name)
        if name != "peer":
            of.add_argument("binary")
        of.add_argument("model", type=Path)
        of.add_argument("rows")
        if name != "alike":
            of.add_argument("--at-once", type=int, nargs="+", default=[1, 16, 64])
        of.add_argument("--tokens", type=int, default=128)
        of.add_argument("--words", type=int, default=40)
        of.add_argument("--device", default="cuda")
        if name != "peer":
            of.add_argument("--out", type=Path, required=True)
            of.add_argument("--errors", type=Path, help="stderr is added to this file")
        of.set_defaults(run=run)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
