#!/usr/bin/env python3
"""Does EAFT forget less than plain fine-tuning that learns as much? Every loss at several learning rates, measured on held-out rows and on general tasks.

    python3 tests/peers/study.py DIAGNOSE OUT --data ROWS.jsonl --general hellaswag=FILE,arc_easy=FILE,text.jsonl
        [--train 600 --held-out 150 --way 3e-5 1e-4 3e-4 --rates 1e-4 3e-4 --methods eaft --seeds 0 --sample 300]

A lower learning rate forgets less, too. So a loss is not set beside plain fine-tuning at the same rate, but beside the point on the way of plain
fine-tuning from rate to rate (--way) where as much was learnt of the held-out rows, found by linear interpolation (the base model is its beginning). A
general task is a task of `diagnose eval` with choices or last words; a text (.jsonl, .txt) counts by bits per byte. Intervals are 95 % bootstrap intervals over
held-out rows, items and texts, drawn for all models alike; they do not say how much another seed or another draw of rows to learn
would change. Finished steps are not done again. Writes OUT/table.md. Needs numpy and pyarrow.
"""

import argparse
import json
import pathlib
import random
import shutil
import subprocess

import numpy
import pyarrow.parquet

parser = argparse.ArgumentParser()
parser.add_argument("diagnose")
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--data", required=True)
parser.add_argument("--general", required=True)
parser.add_argument("--train", type=int, default=600)
parser.add_argument("--held-out", type=int, default=150)
parser.add_argument("--way", nargs="+", default=["3e-5", "1e-4", "3e-4"])
parser.add_argument("--rates", nargs="+", default=["3e-5", "1e-4", "3e-4"])
parser.add_argument("--methods", nargs="+", default=["eaft"])
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--epochs", default="1")
parser.add_argument("--sample", default="300")
parser.add_argument("--resamples", type=int, default=4000)
options = parser.parse_args()
OUT = options.out
OUT.mkdir(parents=True, exist_ok=True)
TRAIN, HELD = OUT / "train.jsonl", OUT / "held-out.jsonl"


def run(*arguments):
    print("+", *arguments, flush=True)
    subprocess.run([options.diagnose, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def split():
    lines = [line for line in pathlib.Path(options.data).read_text(encoding="utf-8").split("\n") if line.strip()]
    random.Random(1).shuffle(lines)
    held, train = lines[: options.held_out], lines[options.held_out : options.held_out + options.train]
    for path, part in ((HELD, held), (TRAIN, train)):
        path.write_text("\n".join(part) + "\n", encoding="utf-8")


def evaluated(name, model=None):
    """The folder of an evaluation, which `done` says is whole."""
    folder = OUT / f"eval-{name}"
    if not (folder / "done").exists():
        which = ["--model", model] if model else []
        run("eval", *which, "--dtype", "bf16", "--sample", options.sample, "--seed", "7", "--tasks", f"{options.general},{HELD}", "--out", folder)
        (folder / "done").touch()
    return folder


def trained(method, rate, seed):
    name = f"{method}_{rate}_{seed}"
    if not (OUT / f"diff-{name}" / "diff.json").exists():
        folder = OUT / f"train-{name}"
        run("train", TRAIN, "--method", method, "--dtype", "bf16", "--lr", rate, "--batch-size", 8, "--epochs", options.epochs, "--seed", seed, "--out", folder)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        evaluated(name, folder / "model")
        # The divergence from the base model needs both models: now, as the tuned one does not stay.
        run("diff", OUT / "eval-base", OUT / f"eval-{name}", "--kl", "--out", OUT / f"diff-{name}")
        shutil.rmtree(folder / "model")
    return name


class Measured:
    """What one model did, item by item, in the same order for all models."""

    def __init__(self, name):
        folder = OUT / f"eval-{name}"
        tasks = json.loads((folder / "scores.json").read_text())["tasks"]
        self.right, self.loss, self.bits = {}, None, None
        samples = pyarrow.parquet.read_table(folder / "samples.parquet").to_pylist()
        for task, scores in tasks.items():
            rows = [row for row in samples if row["task"] == task]
            if scores["primary"].startswith("acc"):
                self.right[task] = right_by_item(rows, scores["primary"])
            elif scores["primary"] == "cross_entropy":
                self.loss = numpy.array([[-row["logprob"], row["tokens"]] for row in sorted(rows, key=lambda row: row["id"])])
            else:
                self.bits = numpy.array([[-row["logprob"] / numpy.log(2), row["bytes"]] for row in sorted(rows, key=lambda row: row["id"])])

    def at(self, draws):
        """Mean loss of a held-out token, mean accuracy over the tasks, bits per byte; of the items that `draws` names."""
        loss = self.loss[draws["loss"]].sum(0)
        bits = self.bits[draws["bits"]].sum(0)
        right = numpy.mean([self.right[task][draws[task]].mean() for task in self.right])
        return numpy.array([loss[0] / loss[1], 100 * right, bits[0] / bits[1]])


def right_by_item(rows, metric):
    """1 where the picked choice is the answer, or where the last word is the most probable one."""
    items = {}
    for row in rows:
        items.setdefault(row["id"], []).append(row)
    picked = "picked_norm" if metric == "acc_norm" else "picked"
    is_right = lambda choices: choices[0]["greedy"] if len(choices) == 1 else any(row[picked] and row["choice"] == row["answer"] for row in choices)
    return numpy.array([float(is_right(items[item])) for item in sorted(items)])


def interpolated(way, gain):
    """The values on the way of plain fine-tuning, `[points, values]`, where its first value comes to `gain`; None beyond its end."""
    for before, after in zip(way, way[1:]):
        if before[0] <= gain <= after[0]:
            share = (gain - before[0]) / max(after[0] - before[0], 1e-12)
            return before + share * (after - before)
    return None


def interval(values, digits):
    low, high = numpy.percentile(values[1:], [2.5, 97.5])
    return f"{values[0]:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def table(names):
    base = Measured("base")
    measured = {name: Measured(name) for name in names}
    generator = numpy.random.default_rng(0)
    sizes = {"loss": len(base.loss), "bits": len(base.bits)} | {task: len(right) for task, right in base.right.items()}
    whole = {key: numpy.arange(n) for key, n in sizes.items()}
    draws = [whole] + [{key: generator.integers(0, n, n) for key, n in sizes.items()} for _ in range(options.resamples)]
    # By draw: what was learnt (nats), the change in accuracy (points), the rise in bits per byte.
    signs = numpy.array([-1.0, 1.0, 1.0])
    bases = [base.at(draw) for draw in draws]
    changes = {name: numpy.array([signs * (model.at(draw) - own) for draw, own in zip(draws, bases)]) for name, model in measured.items()}
    general = ", ".join(f"{task} {100 * right.mean():.1f} %" for task, right in base.right.items())
    text = [
        f"Base: {bases[0][0]:.3f} nats a held-out token ({len(base.loss)} rows), {bases[0][1]:.1f} % on the mean of {len(base.right)} tasks ({general}; "
        f"{sum(sizes[task] for task in base.right)} items), {bases[0][2]:.4f} bits a byte ({len(base.bits)} texts).",
        "",
        "| loss | rate | seed | learnt, nats a held-out token | general tasks, points | general text, bits a byte | KL from the base |",
        "|---|---|---:|---|---|---|---|",
    ]
    for name in names:
        method, rate, seed = name.split("_")
        divergence = json.loads((OUT / f"diff-{name}" / "diff.json").read_text())["divergence"]["mean"]
        low, high = divergence.get("ci95") or (float("nan"),) * 2
        learnt, points, bits = (interval(changes[name][:, i], digits) for i, digits in enumerate((3, 1, 4)))
        text.append(f"| {method} | {rate} | {seed} | {learnt} | {points} | {bits} | {divergence['value']:.3f} ({low:.3f} to {high:.3f}) |")
    text += [
        "",
        "| beside plain fine-tuning that learnt as much | rate | seed | general tasks, points | general text, bits a byte | draws within reach |",
        "|---|---|---:|---|---|---:|",
    ]
    for name in names:
        method, rate, seed = name.split("_")
        if method == "sft":
            continue
        way = [f"sft_{rate}_{seed}" for rate in options.way]
        if not all(point in changes for point in way):
            continue
        differences = []
        for draw in range(len(draws)):
            points = [numpy.zeros(3)] + [changes[point][draw] for point in way]
            there = interpolated(points, changes[name][draw][0])
            differences.append(numpy.full(2, numpy.nan) if there is None else (changes[name][draw] - there)[1:])
        differences = numpy.array(differences)
        reached = ~numpy.isnan(differences[:, 0])
        if reached[0] and reached.mean() > 0.95:
            points, bits = interval(differences[reached, 0], 1), interval(differences[reached, 1], 4)
        else:
            points = bits = "plain fine-tuning did not learn as much at any of these rates"
        text.append(f"| {method} | {rate} | {seed} | {points} | {bits} | {100 * reached.mean():.0f} % |")
    (OUT / "table.md").write_text("\n".join(text) + "\n")
    print("\n".join(text), flush=True)


split()
evaluated("base")
done = []
for seed in options.seeds:
    for method, rates in [("sft", options.way), *((method, options.rates) for method in options.methods)]:
        for rate in rates:
            done.append(trained(method, rate, seed))
            table(done)
