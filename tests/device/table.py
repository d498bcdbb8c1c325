#!/usr/bin/env python3
"""results.jsonl of run.sh -> one table in Markdown.

    python table.py RESULTS.jsonl MODELS.json
"""

import json
import statistics
import sys
from pathlib import Path

results = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines() if line.strip()]
models = json.loads(Path(sys.argv[2]).read_text()) if Path(sys.argv[2]).exists() else {}


def of(kind):
    return [result["value"] for result in results if result["kind"] == kind]


def median(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def shown(value, form, scale=1.0):
    return "" if value is None else format(value / scale, form)


def table(heads, rows):
    if rows:
        print("| " + " | ".join(heads) + " |")
        print("|" + "|".join("---" if i == 0 else "---:" for i in range(len(heads))) + "|")
        for row in rows:
            print("| " + " | ".join(str(cell) for cell in row) + " |")
        print()


GIB = 2**30
card = (of("card") or [{}])[0]
products = (of("products") or [{}])[0]
print("# Device run\n")
print(", ".join(f"{key} {value}" for key, value in card.items() if value) + "\n")
if products:
    rates = {key: f"{products[f'{key}_flop_per_second'] / 1e12:.0f} TFLOP/s" for key in ("bf16", "f32", "tf32")}
    print(f"Measured at best (torch {products['torch']}, {products['size']}^3): bf16 {rates['bf16']}, f32 {rates['f32']}, "
          f"TF32 {rates['tf32']}; copies {products['copy_bytes_per_second'] / 1e12:.2f} TB/s\n")

for tests in of("tests"):
    print(f"Device tests: {tests['line']}\n")
    for failed in tests["failed"]:
        print(f"- failed: {failed}")
    print()

parity = of("parity")
table(
    ["parity", "tokens", "mean abs d ln p", "max", "mean abs d H", "max", "mean abs d H20", "ranks equal", "top equal", ""],
    [
        [f"{p['name']}"] + ([p.get("error", "")] + [""] * 7 if "n" not in p else [
            p["n"], f"{p['mean_logprob']:.2e}", f"{p['max_logprob']:.2e}", f"{p['mean_entropy']:.2e}", f"{p['max_entropy']:.2e}",
            f"{p['mean_entropy_topk']:.2e}", f"{p['ranks_equal']:.2%}", f"{p['top_ids_equal']:.2%}",
        ]) + [{True: "ok", None: ""}.get(p.get("passed", False), "FAILED")]
        for p in parity
    ],
)

table(
    ["answers, one and 64 at a time", "answers", "the same to the bit"],
    [[one["model"], one.get("answers", one.get("error", "")), one.get("same", "")] for one in of("alike")],
)

rows = []
for model, about in models.items():
    for file in ("rows-512.jsonl", "rows-4096.jsonl"):
        mine = [run for run in of("ours") if (run["model"], run["rows"]) == (model, file) and run["rc"] == 0]
        theirs = [run for run in of("peer") if (run["model"], run["rows"]) == (model, file) and "seconds" in run]
        if not mine and not theirs:
            continue
        rate = median([run["tokens_per_second"] for run in mine])
        stages = median([run["seconds"]["decoder"] + run["seconds"]["head"] for run in mine])
        tokens = mine[0]["seconds"]["input_tokens"] if mine else theirs[0]["tokens"]
        engine = tokens / stages if stages else None
        peer = max((run["tokens_per_second"] for run in theirs), default=None)
        peer_gpu = max((run["gpu_tokens_per_second"] for run in theirs), default=None)
        n_rows = mine[0]["counts"]["scored"] if mine else theirs[0]["n_rows"]
        flop = about["decoder_flop_per_token"] + about["head_flop_per_token"]
        flop += about["attention_flop_per_token_and_length"] * tokens / n_rows
        best = products.get("bf16_flop_per_second")
        share = lambda rate: f"{rate * flop / best:.1%}" if rate and best else ""
        ratio = lambda a, b: f"{a / b:.2f}x" if a and b else ""
        memory, weights = median([run["card_peak_bytes"] for run in mine]), 2 * about["weights"]
        layers = "" if about["layers"] == about["of_layers"] else f", {about['layers']} of {about['of_layers']} layers"
        rows.append([
            f"{model} ({about['like']}'s shape{layers}), {file.removesuffix('.jsonl')}", tokens, len(mine), shown(rate, ".0f"),
            shown(engine, ".0f"), shown(peer, ".0f"), shown(peer_gpu, ".0f"), ratio(rate, peer), ratio(engine, peer_gpu), share(rate),
            share(engine), shown(weights, ".2f", GIB), shown(memory, ".2f", GIB),
            shown(memory - weights if memory is not None else None, ".2f", GIB),
            shown(max((run["peak_memory_bytes"] or 0 for run in theirs), default=None), ".2f", GIB),
            shown(median([run["peak_memory_bytes"] for run in mine]), ".2f", GIB),
            shown(median([run["seconds"]["load"] for run in mine]), ".1f"),
        ])
table(
    [
        "speed, bf16, tokens/s", "tokens", "runs", "diagnose", "decoder + head alone", "Transformers", "its GPU part alone", "ratio",
        "ratio of the parts", "share of best products", "that of decoder + head", "weights GiB", "card GiB", "over weights",
        "Transformers' card GiB", "host GiB", "load s",
    ],
    rows,
)

written = {}
for run in of("written"):
    written.setdefault((run["model"], run["at_once"]), {})[run["who"]] = run
rate = lambda run: run.get("tokens_per_second") if run else None
table(
    ["answers, bf16, tokens/s", "at once", "diagnose", "Transformers", "ratio", "steps", "shared tokens"],
    [
        [
            model, at_once, shown(rate(by.get("diagnose")), ".0f"), shown(rate(by.get("Transformers")), ".0f"),
            f"{rate(by['diagnose']) / rate(by['Transformers']):.2f}x" if rate(by.get("diagnose")) and rate(by.get("Transformers")) else "",
            *[by.get("diagnose", {}).get("written", {}).get(key, "") for key in ("steps", "shared_tokens")],
        ]
        for (model, at_once), by in written.items()
    ],
)

def rate_of_prompts(run):
    written = run["written"]
    return run["tokens_per_second"] / written["tokens"] * (written["prompt_tokens"] - written["shared_tokens"])


table(
    ["prompts of answers, bf16", "at once", "tokens computed/s", "prompts' tokens", "shared", "steps"],
    [
        [
            run["model"], run["at_once"], shown(rate_of_prompts(run), ".0f"),
            *[run["written"][key] for key in ("prompt_tokens", "shared_tokens", "steps")],
        ]
        for run in of("prompts")
        if run["rc"] == 0
    ],
)

heads = ["audit", "wall", "read_and_tokenise", "decoder", "head", "sample", "write", "engine_waited"]
seen = {}
for run in of("ours"):
    if run["rc"] == 0:
        seen[run["model"], run["rows"]] = run
table(
    ["seconds of the last run", "whole process", *heads],
    [
        [f"{model}, {file.removesuffix('.jsonl')}", f"{run['whole_seconds']:.1f}"]
        + [f"{run['seconds'].get(head, 0):.3f}" for head in heads]
        for (model, file), run in seen.items()
    ],
)

steps = of("step")
table(
    ["step", "result", "s"],
    [[step["name"], step["result"], step["seconds"]] for step in steps],
)
for run in of("written") + of("prompts"):
    if run["rc"] != 0:
        print(f"- {run['model']}, {run['at_once']} answers at once: {' / '.join(run['error'].splitlines())[:400]}")
for run in of("parity-run") + of("ours") + of("profile-run"):
    if run["rc"] != 0:
        said = " / ".join(run["error"].splitlines())[:400] or run["rc"]
        print(f"- {run['model']} {run['rows']} {run['device']} {run['dtype']}: {said}")
