#!/usr/bin/env python3
"""lm-evaluation-harness and `diagnose eval` on the same word problems: the same prompts, the same answers, the same score?

    python3 -m venv V && V/bin/pip install lm-eval==0.4.13 torch transformers accelerate pyarrow
    V/bin/python tests/peers/written.py --model FOLDER --test GSM8K_TEST.jsonl --train GSM8K_TRAIN.jsonl --items 60 --diagnose PROGRAM

The harness runs its own gsm8k.yaml on its Transformers backend in f32, greedy, with the first five rows of --train as examples: the data set and
the place of the examples are all that is changed in the task. Both run plain and through the model's chat template. Prompts are compared by
`prompt_hash`, answers as texts, verdicts item by item; what differs is printed. --only runs one of the two ways.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def rows(path, n, skip=0):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in itertools.islice((line for line in lines if line.strip()), skip, skip + n)]


def harness(arguments, scratch, chat):
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    import lm_eval
    import lm_eval.tasks
    import torch
    import yaml
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(arguments.threads)
    config = yaml.safe_load((Path(lm_eval.tasks.__file__).parent / "gsm8k/gsm8k.yaml").read_text())
    for key in ("dataset_name", "training_split", "fewshot_split", "tag"):
        config.pop(key)
    config["dataset_path"] = "json"
    config["dataset_kwargs"] = {"data_files": {"test": str(scratch / "test.jsonl")}}
    config["fewshot_config"] = {"sampler": "first_n", "samples": rows(scratch / "train.jsonl", 5)}
    config["generation_kwargs"]["max_gen_toks"] = arguments.max_new_tokens
    lm = HFLM(arguments.model, device="cpu", dtype=torch.float32, max_length=2048, batch_size=arguments.batch)
    options = {"apply_chat_template": chat, "fewshot_as_multiturn": chat, "log_samples": True, "bootstrap_iters": 0}
    began = time.perf_counter()
    found = lm_eval.simple_evaluate(lm, tasks=[config], **options)
    items = {}
    for sample in found["samples"]["gsm8k"]:
        item = items.setdefault(sample["doc_id"], {"prompt": sample["prompt_hash"], "answer": sample["resps"][0][0]})
        item[f"exact_match,{sample['filter']}"] = int(sample["exact_match"])
    return [items[number] for number in sorted(items)], time.perf_counter() - began


def ours(arguments, scratch, chat):
    import pyarrow.parquet as parquet

    out = scratch / f"out-{chat}"
    command = [arguments.diagnose, "eval", "--model", arguments.model, "--tasks", f"gsm8k={scratch / 'test.jsonl'}", "--out", out]
    command += ["--fewshot-from", scratch / "train.jsonl", "--max-new-tokens", str(arguments.max_new_tokens), "--max-len", "2048"]
    began = time.perf_counter()
    subprocess.run(command + (["--apply-chat-template"] if chat else []), check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    metrics = ["exact_match,strict-match", "exact_match,flexible-extract"]
    found = parquet.read_table(out / "answers.parquet").to_pylist()
    return [{"prompt": row["prompt_sha256"], "answer": row["text"], **{metric: row[metric] for metric in metrics}} for row in found], seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder of Transformers")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--skip", type=int, default=0, help="as many rows of --test, so that a long comparison can be cut in parts")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8, help="of the harness")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=["plain", "chat"])
    parser.add_argument("--diagnose", type=Path, default=Path(__file__).parents[2] / "target/release/diagnose")
    arguments = parser.parse_args()
    unlike = 0
    for way in [arguments.only] if arguments.only else ["plain", "chat"]:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            for name, found in [("test.jsonl", rows(arguments.test, arguments.items, arguments.skip)), ("train.jsonl", rows(arguments.train, 5))]:
                (scratch / name).write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
            (mine, my_seconds), (theirs, their_seconds) = (run(arguments, scratch, way == "chat") for run in (ours, harness))
        assert len(mine) == len(theirs) == arguments.items
        counts = {key: sum(a[key] == b[key] for a, b in zip(mine, theirs)) for key in mine[0]}
        print(f"{way}: equal of {arguments.items}: " + ", ".join(f"{key} {count}" for key, count in counts.items()))
        for metric in [key for key in mine[0] if key.startswith("exact_match")]:
            print(f"  {metric}: {sum(row[metric] for row in mine)} right here, {sum(row[metric] for row in theirs)} there")
        print(f"  seconds: {my_seconds:.0f} here, {their_seconds:.0f} there")
        for number, (a, b) in enumerate(zip(mine, theirs)):
            if a != b:
                print(f"  item {number}:\n    here  {a['answer']!r}\n    there {b['answer']!r}")
        unlike += sum(len(mine) - count for count in counts.values())
    sys.exit(1 if unlike else 0)


if __name__ == "__main__":
    main()
