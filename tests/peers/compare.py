#!/usr/bin/env python3
"""The whole job side by side: diagnose, a tuned Transformers script, llama.cpp's prompt evaluation; same model, rows and machine.

    python3 -m venv V && V/bin/pip install torch transformers gguf accelerate
    V/bin/python tests/peers/compare.py ROWS.jsonl --gguf MODEL.gguf --dtype f32 --repeat 3
    V/bin/python tests/peers/compare.py ROWS.jsonl --gguf MODEL.gguf --dtype f32 --long 8000 --batches 1
    V/bin/python tests/peers/compare.py ROWS.jsonl --folder MODEL --dtype bf16

ROWS.jsonl holds chat messages; with --long N their texts are joined to a few rows of N tokens, half of each prompt and half answer. Every number is input tokens (all of them, as tokenised here, cut at --max-len) per second after the
model is loaded; each run is a process of its own, in turn, so that a slow minute of the machine hits all of them. Peak memory is the
process's high-water mark.

- transformers: sorted by length, padded batches, the head on answer tokens only, statistics in place (log-probability, entropy,
  top-20 entropy, rank); the best of the batch sizes given by --batch.
- llama.cpp: prompt evaluation alone, row by row, the head on one token, no statistics: a lower bound of what a script around it would cost.
  With --dtype f32 and bf16 it runs a GGUF of that type, made by --llama-gguf (the quantised file otherwise, and the table says so).
- diagnose: everything, tables, maps and report included in its wall time by the `whole` column. How near it comes to its matrix products
  alone on this machine, and what takes the rest, says `cargo bench --bench engine`.
"""

import argparse
import copy
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path


def peak_gib():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    return float("nan")


def transformers_folder(gguf, folder):
    """Converts once. The conversion forgets that SmolLM2's digits are split one by one: mended here."""
    if (folder / "config.json").exists():
        return
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = dict(pretrained_model_name_or_path=str(gguf.parent), gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, tokenizer.backend_tokenizer.pre_tokenizer])
    tokenizer.save_pretrained(folder)
    dequantised = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
    # What came out of a GGUF refuses to be saved, so a plain model takes its weights.
    config = copy.deepcopy(dequantised.config)
    config.__dict__.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(dequantised.state_dict())
    plain.save_pretrained(folder)


def sequences(rows, folder, max_len):
    """(ids, first answer token) of each row: prompt and answer tokenised apart, as at inference."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for line in open(rows):
        messages = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
        answer_ids = tokenizer.encode(whole[len(prompt):], add_special_tokens=False)
        ids = (prompt_ids + answer_ids)[:max_len]
        yield ids, min(len(prompt_ids), len(ids))


def long_rows(rows, folder, length, count, path):
    """Rows of at least `length` tokens: the texts of the rows, one after another, the first half as the prompt."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = itertools.cycle([message["content"] for line in open(rows) for message in json.loads(line)["messages"]])

    def text(tokens):
        joined, n = [], 0
        while n < tokens:
            joined.append(next(texts))
            n += len(tokenizer.encode(joined[-1], add_special_tokens=False)) + 1
        return "\n".join(joined)

    with open(path, "w") as out:
        for _ in range(count):
            messages = [{"role": "user", "content": text(length // 2)}, {"role": "assistant", "content": text(length)}]
            out.write(json.dumps({"messages": messages}) + "\n")


def run_transformers(arguments):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    torch.set_num_threads(arguments.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    model = AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=dtype)
    rows = sorted(sequences(arguments.rows, arguments.folder, arguments.max_len), key=lambda row: len(row[0]))
    began, tokens, scored = time.perf_counter(), sum(len(ids) for ids, _ in rows), 0
    for start in range(0, len(rows), arguments.batch):
        batch = rows[start : start + arguments.batch]
        width = max(len(ids) for ids, _ in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        attention = torch.zeros(len(batch), width, dtype=torch.long)
        for i, (row, _) in enumerate(batch):
            ids[i, : len(row)] = torch.tensor(row)
            attention[i, : len(row)] = 1
        hidden = model.model(input_ids=ids, attention_mask=attention).last_hidden_state
        where = [(i, t) for i, (row, first) in enumerate(batch) for t in range(max(first, 1) - 1, len(row) - 1)]
        # The head 256 tokens at a time: a matrix for all of them would not fit the cache.
        for piece in range(0, len(where), 256):
            at = where[piece : piece + 256]
            targets = torch.tensor([batch[i][0][t + 1] for i, t in at])
            logits = model.lm_head(torch.stack([hidden[i, t] for i, t in at])).float()
            target_logits = logits.gather(1, targets[:, None])
            rank = (logits > target_logits).sum(1) + 1
            top = logits.topk(20, dim=1).values.log_softmax(1)
            topk = -(top.exp() * top).sum(1)
            logits.sub_(logits.logsumexp(1, keepdim=True))
            logprob = logits.gather(1, targets[:, None])
            entropy = -(logits.exp().mul_(logits)).sum(1)
            scored += len(rank) + 0 * int(topk.shape[0] + logprob.shape[0] + entropy.shape[0])
    seconds = time.perf_counter() - began
    print(json.dumps({"tokens_per_second": tokens / seconds, "peak_gib": peak_gib(), "tokens": tokens, "scored": scored}))


def run_llama(arguments):
    """Each row through llama-server, one after the other; it says itself how long the evaluation of the prompt took."""
    rows = [json.loads(line) for line in open(arguments.tokens)]
    port = str(arguments.port)
    command = [arguments.llama_server, "-m", str(arguments.gguf), "-c", str(arguments.max_len + 8), "-t", str(arguments.threads),
               "-tb", str(arguments.threads), "-np", "1", "--port", port, "-ngl", "0", "--no-webui"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(ids):
        body = json.dumps({"prompt": ids, "n_predict": 1, "cache_prompt": False}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", body, {"Content-Type": "application/json"})
        timings = json.load(urllib.request.urlopen(request))["timings"]
        assert timings["prompt_n"] == len(ids), f"{timings['prompt_n']} tokens evaluated of {len(ids)}"
        return timings["prompt_ms"] / 1000

    try:
        for _ in range(600):
            try:
                ask(rows[0][:8])
                break
            except OSError:
                time.sleep(0.1)
        seconds = sum(map(ask, rows))
        peak = [int(line.split()[1]) / 2**20 for line in open(f"/proc/{server.pid}/status") if line.startswith("VmHWM:")]
    finally:
        server.kill()
    tokens = sum(map(len, rows))
    print(json.dumps({"tokens_per_second": tokens / seconds, "peak_gib": peak[0], "tokens": tokens}))


def last_json(command):
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def run_all(arguments):
    scratch = Path(tempfile.mkdtemp())
    arguments.folder = arguments.folder or scratch / "model"
    if arguments.gguf:
        transformers_folder(arguments.gguf, arguments.folder)
    if arguments.long:
        arguments.max_len = arguments.long
        path = scratch / "long.jsonl"
        long_rows(arguments.rows, arguments.folder, arguments.long, arguments.long_rows, path)
        arguments.rows = path
    tokens_file = scratch / "tokens.jsonl"
    rows = [ids for ids, _ in sequences(arguments.rows, arguments.folder, arguments.max_len)]
    tokens_file.write_text("".join(json.dumps(ids) + "\n" for ids in rows))
    n_tokens = sum(map(len, rows))
    common = ["--dtype", arguments.dtype, "--max-len", str(arguments.max_len), "--threads", str(arguments.threads)]
    here = [sys.executable, __file__]

    def transformers_at(batch):
        command = [*here, "--side", "transformers", str(arguments.rows), "--folder", str(arguments.folder), "--batch", str(batch)]
        return lambda: last_json(command + common)

    def llama():
        gguf = arguments.llama_gguf or arguments.gguf
        command = [*here, "--side", "llama", str(arguments.rows), "--gguf", str(gguf), "--llama-server", arguments.llama_server]
        return last_json(command + ["--tokens", str(tokens_file), "--port", str(arguments.port)] + common)

    def diagnose():
        out = scratch / "run"
        shutil.rmtree(out, ignore_errors=True)
        began = time.perf_counter()
        command = [arguments.diagnose, str(arguments.rows), "--model", str(arguments.gguf or arguments.folder), "--out", str(out)]
        command += ["--dtype", arguments.dtype, "--max-len", str(arguments.max_len)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        whole = time.perf_counter() - began
        run = json.loads((out / "run.json").read_text())
        return {"tokens_per_second": run["tokens_per_second"], "peak_gib": run["peak_memory_bytes"] / 2**30, "whole": n_tokens / whole,
                "first_row": run["seconds_to_first_row"], "seconds": run["seconds"],
                "machine": f"{run['processor']}, level {run['kernel_level']}"}

    sides = {"diagnose": diagnose}
    sides |= {f"transformers, batch {batch}": transformers_at(batch) for batch in arguments.batches}
    if arguments.llama_server:
        sides["llama.cpp" + ("" if arguments.llama_gguf else " (quantised)")] = llama
    results = {name: [] for name in sides}
    for repeat in range(arguments.repeat):
        for name, side in sides.items():
            results[name].append(side())
            print(f"{repeat + 1}/{arguments.repeat} {name}: {results[name][-1]}", file=sys.stderr)

    def median(name, key):
        return statistics.median(result[key] for result in results[name])

    ours = median("diagnose", "tokens_per_second")
    machine = results["diagnose"][-1]["machine"]
    print(f"\n{machine}: {len(rows)} rows, {n_tokens} tokens, {arguments.dtype}, {arguments.threads} threads, medians of {arguments.repeat}\n")
    print("| | tokens/s | peak GiB | diagnose is |\n|---|---:|---:|---:|")
    for name in sides:
        rate = median(name, "tokens_per_second")
        print(f"| {name} | {rate:.0f} | {median(name, 'peak_gib'):.2f} | {ours / rate:.2f}x |")
    print(f"| diagnose, start to report | {median('diagnose', 'whole'):.0f} | | |")
    stages = results["diagnose"][-1]["seconds"]
    print(f"\ndiagnose: first row after {median('diagnose', 'first_row'):.2f} s; of its last run's seconds, "
          + ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items() if not name.endswith("tokens")))
    shutil.rmtree(scratch)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--gguf", type=Path, help="absent: the model of --folder")
    parser.add_argument("--llama-gguf", type=Path, help="a GGUF of --dtype for llama.cpp")
    parser.add_argument("--llama-server", help="llama.cpp's server, built on this machine (cmake -DGGML_NATIVE=ON); without it llama.cpp is left out")
    parser.add_argument("--port", type=int, default=8093)
    parser.add_argument("--diagnose", default="target/release/diagnose")
    parser.add_argument("--folder", type=Path, help="the model as a Transformers folder; made if absent")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--max-len", type=int, default=512)
    parser.add_argument("--long", type=int, help="rows of so many tokens instead of those of ROWS")
    parser.add_argument("--long-rows", type=int, default=3, help="how many of them")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--side", choices=["transformers", "llama"], help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    {"transformers": run_transformers, "llama": run_llama, None: run_all}[arguments.side](arguments)


if __name__ == "__main__":
    main()
