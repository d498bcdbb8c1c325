#!/usr/bin/env python3
"""Does repairing the conflicts of a data set help? Models trained on the data as they are, repaired, and as controls, each measured on held-out rows.

    python3 tests/peers/repair.py DIAGNOSE OUT [--seeds 0 1 2] [--data ROWS.jsonl --rows 200]

Without --data: the demo, whose planted conflicts have a truth. Trained are the rows as they are, with what was planted put right, without the rows
that have a planted conflict, without as many rows at random, and as they are with EAFT. With --data: the first --rows of a real file, as they are,
with the tokens in conflict masked, without the sixth of the rows with the most conflict mass, without as many at random, and as they are with
EAFT. A quarter of the rows is held out, by the seed; the demo's held-out rows are put right. Writes OUT/table.md. Nothing but the program and
Python's library is needed.
"""

import argparse
import json
import pathlib
import random
import subprocess

parser = argparse.ArgumentParser()
parser.add_argument("diagnose")
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--data")
parser.add_argument("--rows", type=int, default=200)
parser.add_argument("--epochs", default="2")
options = parser.parse_args()
DIAGNOSE, OUT = options.diagnose, options.out
OUT.mkdir(parents=True, exist_ok=True)
ROWS = [json.loads(line) for line in open(options.data or "data/demo.jsonl", encoding="utf-8")]
if options.data:
    ROWS = ROWS[:options.rows]
TRAIN = ["--lora", "--dtype", "bf16", "--lr", "2e-4", "--epochs", options.epochs, "--batch-size", "8", "--warmup-steps", "2"]


def repaired(row):
    """The row with the truth in place of what was planted; spans count bytes."""
    row = json.loads(json.dumps(row))
    for span in sorted(row.pop("planted", []), key=lambda span: -span["begin"]):
        turn = row["messages"][span["turn"]]
        text = turn["content"].encode()
        assert text[span["begin"] : span["end"]].decode() == span["planted"]
        turn["content"] = (text[: span["begin"]] + span["truth"].encode() + text[span["end"] :]).decode()
    return row


def write(name, rows):
    path = OUT / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def run(*arguments):
    print("+", *arguments, flush=True)
    subprocess.run([DIAGNOSE, *arguments], check=True, stdout=subprocess.DEVNULL)


def read(path):
    return json.loads((OUT / path).read_text())


def interval(estimate, scale=1.0, digits=3):
    ends = estimate.get("ci95") or [float("nan")] * 2
    return f"{scale * estimate['value']:+.{digits}f} ({scale * ends[0]:+.{digits}f} to {scale * ends[1]:+.{digits}f})"


def sets_of_demo(train, seed):
    is_wrong = [bool(row.get("planted")) for row in train]
    n_wrong = sum(is_wrong)
    return {
        "as it is": train,
        "repaired": [repaired(row) for row in train],
        "wrong rows dropped": [row for row, wrong in zip(train, is_wrong) if not wrong],
        "as many dropped at random": fewer(train, n_wrong, seed),
        "as it is, EAFT": train,
    }


def sets_of_real(train, seed):
    """What the program itself exports of its run over the rows."""
    run_folder = OUT / f"look-{seed}"
    run(write(f"train-{seed}", train), "--out", str(run_folder), "--no-view")
    # The mass from which on a sixth of the rows lies, by bisection.
    low, high = 0.0, 1000.0
    for _ in range(20):
        middle = (low + high) / 2
        run("export", str(run_folder), "--drop", f"mass={middle}", "--out", str(OUT / f"dropped-{seed}.jsonl"))
        dropped = [json.loads(line) for line in open(OUT / f"dropped-{seed}.jsonl", encoding="utf-8")]
        low, high = (low, middle) if len(train) - len(dropped) < len(train) / 6 else (middle, high)
    run("export", str(run_folder), "--mask", "conflicts", "--format", "messages", "--out", str(OUT / f"masked-{seed}.jsonl"))
    masked = [json.loads(line) for line in open(OUT / f"masked-{seed}.jsonl", encoding="utf-8")]
    return {
        "as it is": train,
        "conflicts masked": masked,
        "sixth with most conflict mass dropped": dropped,
        "as many dropped at random": fewer(train, len(train) - len(dropped), seed),
        "as it is, EAFT": train,
    }


def fewer(train, n, seed):
    kept = sorted(random.Random(seed + 100).sample(range(len(train)), len(train) - n))
    return [train[i] for i in kept]


def experiment(seed):
    rows = ROWS[:]
    random.Random(seed).shuffle(rows)
    n_held_out = len(rows) // 4
    held_out, train = rows[:n_held_out], rows[n_held_out:]
    sets = (sets_of_real if options.data else sets_of_demo)(train, seed)
    held = write(f"held-out-{seed}", held_out if options.data else [repaired(row) for row in held_out])
    base = OUT / f"base-{seed}"
    run(held, "--out", str(base), "--no-view")
    lines, first = [], None
    for name, data in sets.items():
        slug = name.replace(",", "").replace(" ", "-") + f"-{seed}"
        method = ["--method", "eaft"] if "EAFT" in name else ["--method", "sft"]
        trained = OUT / f"trained-{slug}"
        run("train", write(slug, data), "--out", str(trained), "--merge", "--seed", str(seed), *method, *TRAIN)
        model = str(trained / "model")
        scored = OUT / f"scored-{slug}"
        run(held, "--model", model, "--out", str(scored), "--no-view")
        run("diff", str(base), str(scored), "--out", str(OUT / f"diff-{slug}"))
        learnt = read(f"diff-{slug}/diff.json")["learnt"]
        # Row by row against the first set: what the choice of rows changes, without what all of them learn alike.
        first = first or scored
        against = "-"
        if scored != first:
            run("diff", str(first), str(scored), "--out", str(OUT / f"against-{slug}"))
            against = interval(read(f"against-{slug}/diff.json")["learnt"]["overall"][0]["change"])
        run("eval", "--model", model, "--out", str(OUT / f"eval-{slug}"), "--sample", "160", "--seed", "7")
        run("diff", str(OUT / "eval-base"), str(OUT / f"eval-{slug}"), "--kl", "--out", str(OUT / f"probe-{slug}"))
        probe = read(f"probe-{slug}/diff.json")
        metric = probe["tasks"]["probe"]["metrics"][probe["tasks"]["probe"]["primary"]]
        kl = probe["divergence"].get("mean", {"value": float("nan")})
        lines.append(
            f"| {seed} | {name} | {len(data)} | {interval(learnt['overall'][0]['change'])} | {against} | {learnt['lost']} of {learnt['known']} "
            f"| {interval(metric['difference'], 100, 1)} | {interval(kl, 1, 4)} |"
        )
        print(lines[-1], flush=True)
    return lines


run("eval", "--out", str(OUT / "eval-base"), "--sample", "160", "--seed", "7")
table = [
    "| seed | trained on | rows | held-out loss, change in nats per token | against the first | known tokens lost | probe, change in points | KL on general text |",
    "|---:|---|---:|---|---|---|---|---|",
]
for seed in options.seeds:
    table += experiment(seed)
    (OUT / "table.md").write_text("\n".join(table) + "\n")
