#!/usr/bin/env python3
"""Transformers, tuned, with the statistics that diagnose writes: what a careful user's script would take on the same card.

    python peer.py MODEL ROWS.jsonl[:N] .. --dtype bf16|f32 [--batch-tokens N ..] [--out FILE.parquet ..] [--repeat 1]

ROWS holds {"text": ..}; `:N` takes the first N. Prints one JSON object for each file; the model is loaded once. Of several token budgets
the one that is fastest on the file's first 65,536 tokens is taken.

Rows are sorted by length, batched by a token budget and padded on the right without a mask (under causal attention padding comes too
late to matter, and SDPA takes its flash kernel); no cache; the head on predicted positions only, in chunks of 1 GiB of f32 logits;
statistics in f32 on the device, copied once at the end. f32 without TF32. Each file's longest batch is run twice before the clock starts.

`seconds` is the wall time after the model is loaded: reading, tokenising, forward passes, statistics, writing the table by pyarrow.
`gpu_seconds` is that of forward passes and statistics. Memory is what PyTorch's allocator reserved at most.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

TOP_K = 20
FLOATS = ["logprob", "entropy", "entropy_topk", "tail", "varentropy", "grad", "top_logprob"]
LOGITS = 2**28  # f32 logits alive at a time: 1 GiB


def statistics(logits, targets):
    """`logits` [n, vocabulary] f32, overwritten. Returns floats [7, n] in the order of FLOATS and integers [2, n]: rank, top id."""
    target = logits.gather(1, targets[:, None])
    larger = logits > target
    rank = larger.sum(1) + 1
    top, top_ids = logits.topk(TOP_K, dim=1)
    among_top = top.log_softmax(1)
    entropy_topk = -(among_top.exp() * among_top).sum(1) / math.log(TOP_K)

    d = logits.sub_(top[:, :1])
    e = d.exp()
    total = e.sum(1)
    log_total = total.log()
    product = e * d
    mean_d = product.sum(1) / total
    varentropy = (product.mul_(d).sum(1) / total - mean_d.square()).clamp_(min=0)
    squares = torch.mul(e, e, out=product).sum(1) / total.square()
    tail = (e.masked_fill_(larger, 0).sum(1) / total).clamp_(max=1)
    logprob = (target - top[:, :1])[:, 0] - log_total
    grad = (1 - 2 * logprob.exp() + squares).clamp_(min=0).sqrt()
    floats = torch.stack([logprob, log_total - mean_d, entropy_topk, tail, varentropy, grad, -log_total])
    return floats, torch.stack([rank, top_ids[:, 0]])


def batches(rows, budget):
    """Numbers of rows, longest first, as many as fill the budget when padded."""
    order = sorted((i for i, ids in enumerate(rows) if len(ids) > 1), key=lambda i: -len(rows[i]))
    batch = []
    for i in order:
        if batch and len(rows[batch[0]]) * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def score_batch(model, rows, batch, device):
    width = len(rows[batch[0]])
    lengths = torch.tensor([len(rows[i]) for i in batch])
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    for n, i in enumerate(batch):
        ids[n, : len(rows[i])] = torch.tensor(rows[i])
    predicts = torch.arange(width - 1)[None] < lengths[:, None] - 1
    if device.type == "cuda":
        ids, predicts = ids.pin_memory(), predicts.pin_memory()
    ids, predicts = ids.to(device, non_blocking=True), predicts.to(device, non_blocking=True)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    hidden, targets = hidden[:, :-1][predicts], ids[:, 1:][predicts]
    chunk = max(1, LOGITS // model.config.vocab_size)
    parts = [
        statistics(model.lm_head(hidden[at : at + chunk]).float(), targets[at : at + chunk]) for at in range(0, len(targets), chunk)
    ]
    floats, integers = zip(*parts)
    return torch.cat(floats, 1), torch.cat(integers, 1)


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def read(rows, limit):
    with open(rows) as lines:
        return [json.loads(line)["text"] for line, _ in zip(lines, range(limit if limit else 2**62))]


def table(rows, order, floats, integers):
    """Sorted by row and position."""
    floats, integers = floats.cpu(), integers.cpu()
    row = torch.cat([torch.full((len(rows[i]) - 1,), i) for i in order])
    pos = torch.cat([torch.arange(1, len(rows[i])) for i in order])
    target = torch.cat([torch.tensor(rows[i][1:]) for i in order])
    sorting = torch.argsort(row * 2**32 + pos)
    u32 = lambda column: pa.array(column[sorting].numpy().astype("uint32"))
    columns = {"row": u32(row), "pos": u32(pos), "token_id": u32(target)}
    columns |= {name: pa.array(column[sorting].numpy()) for name, column in zip(FLOATS, floats)}
    columns |= {"rank": u32(integers[0]), "top_id": u32(integers[1])}
    return pa.table(columns)


def score(model, rows, budget, device):
    """Numbers of rows in the order of the scores, floats, integers; all done when it returns."""
    order, parts = [], []
    for batch in batches(rows, budget):
        parts.append(score_batch(model, rows, batch, device))
        order += batch
    floats, integers = (torch.cat(part, 1) for part in zip(*parts))
    synchronise(device)
    return order, floats, integers


def fastest(model, rows, budgets, device):
    """Tokens per second of each budget on the first rows, its longest batch having run twice before."""
    sample, tokens = [], 0
    while len(sample) < len(rows) and tokens < 65536:
        tokens += len(rows[len(sample)])
        sample.append(rows[len(sample)])
    rates = {}
    for budget in budgets:
        try:
            for _ in range(2):
                score_batch(model, rows, next(batches(rows, budget)), device)
            synchronise(device)
            if len(budgets) > 1:
                began = time.perf_counter()
                score(model, sample, budget, device)
                rates[budget] = tokens / (time.perf_counter() - began)
            else:
                rates[budget] = None
        except torch.OutOfMemoryError:
            rates[budget] = 0.0
    return max(budgets, key=lambda budget: rates[budget] or 0), rates


@torch.inference_mode()
def run(model, tokenizer, device, rows_file, limit, budgets, out):
    def tokenised():
        return tokenizer(read(rows_file, limit), add_special_tokens=False, return_attention_mask=False)["input_ids"]

    budget, tried = fastest(model, tokenised(), budgets, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    began = time.perf_counter()
    rows = tokenised()
    began_gpu = time.perf_counter()
    order, floats, integers = score(model, rows, budget, device)
    gpu_seconds = time.perf_counter() - began_gpu
    pq.write_table(table(rows, order, floats, integers), out, compression="zstd")
    seconds = time.perf_counter() - began

    tokens = sum(map(len, rows))
    cuda = device.type == "cuda"
    return {
        "rows": Path(rows_file).name, "n_rows": len(rows), "tokens": tokens, "scored": floats.shape[1], "batch_tokens": budget,
        "tried": tried, "seconds": seconds, "gpu_seconds": gpu_seconds, "tokens_per_second": tokens / seconds,
        "gpu_tokens_per_second": tokens / gpu_seconds,
        "peak_memory_bytes": torch.cuda.max_memory_reserved() if cuda else None,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", nargs="+", metavar="ROWS[:N]")
    parser.add_argument("--dtype", choices=["bf16", "f32"], required=True)
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[16384])
    parser.add_argument("--out", type=Path, nargs="+", default=[], help="one table for each of ROWS; scratch if absent")
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[arguments.dtype]
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype, attn_implementation="sdpa").to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    # The rows are as long as they are.
    tokenizer.model_max_length = 2**31
    synchronise(device)
    about = {
        "who": "transformers", "model": arguments.model.name, "dtype": arguments.dtype, "load_seconds": time.perf_counter() - began,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    with tempfile.TemporaryDirectory() as scratch:
        for i, rows in enumerate(arguments.rows):
            file, _, limit = rows.rpartition(":") if rows.rpartition(":")[2].isdigit() else (rows, "", "0")
            out = arguments.out[i] if i < len(arguments.out) else Path(scratch) / "tokens.parquet"
            for _ in range(arguments.repeat):
                result = run(model, tokenizer, device, file, int(limit), arguments.batch_tokens, out)
                print(json.dumps(about | result), flush=True)


if __name__ == "__main__":
    main()
