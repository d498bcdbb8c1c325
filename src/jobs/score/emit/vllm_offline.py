"""Log-probabilities of prepared sequences by vLLM's own engine, without a server between. Written by diagnose.

    python vllm_offline.py MODEL [dtype=bfloat16 tensor_parallel_size=4 max_num_batched_tokens=8192 ..]

Reads sequences.parquet beside it and writes answers/NNNNN.parquet, which `diagnose --answers` reads. What is there is not computed again, and must
be of the same model and options. As one of several tasks (Slurm's array, or TASK and TASKS) it does its share of the files. Needs vllm and pyarrow.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from vllm import LLM, SamplingParams

SEQUENCES_PER_FILE = 256
TOP_K = TOP_LOGPROBS
# The key in the metadata of the answers for what gave them.
MODEL = b"diagnose.model"
# Options that change how fast the engine is, but not what it computes.
SPEED = {"tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "max_num_batched_tokens", "max_num_seqs",
         "gpu_memory_utilization", "cpu_offload_gb", "enforce_eager", "disable_log_stats"}


def value(text):
    words = {"true": True, "false": False}
    return words[text.lower()] if text.lower() in words else int(text) if text.isdigit() else text


def described(model, options):
    name = str(Path(model).resolve()) if Path(model).exists() else model
    return " ".join([name] + [f"{key}={options[key]}" for key in sorted(options) if key not in SPEED])


def lists(values):
    offsets = np.arange(0, values.size + 1, TOP_K, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))


def table(rows, outputs):
    columns = {name: [] for name in ("row", "pos", "token_id", "logprob", "rank", "top_ids", "top_logprobs")}
    for row, output in zip(rows, outputs):
        ids, targets, found = np.array(row["ids"]), np.array(row["targets"]), output.prompt_logprobs
        # Of every token but the first: its own entry, and then the most probable ones, in which it may stand again.
        assert len(found) == len(ids) and found.end_indices[0] == 0, f"row {row['row']}: {len(found)} entries of {len(ids)}"
        [told, logprobs, ranks] = [np.array(x).reshape(len(ids) - 1, 1 + TOP_K) for x in (found.token_ids, found.logprobs, found.ranks)]
        assert (told[:, 0] == ids[1:]).all(), f"row {row['row']}: the entries are another prompt's"
        at = targets - 1
        columns["row"].append(np.full(len(at), row["row"], np.uint32))
        columns["pos"].append(targets.astype(np.uint32))
        columns["token_id"].append(told[at, 0].astype(np.uint32))
        columns["logprob"].append(logprobs[at, 0].astype(np.float32))
        columns["rank"].append(ranks[at, 0].astype(np.uint32))
        columns["top_ids"].append(told[at, 1:].astype(np.uint32))
        columns["top_logprobs"].append(logprobs[at, 1:].astype(np.float32))
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return pa.table({name: lists(array) if array.ndim == 2 else pa.array(array) for name, array in joined.items()})


def main():
    here = Path(__file__).resolve().parent
    task, tasks = (int(os.environ.get(own, os.environ.get(slurm, default))) for own, slurm, default in (
        ("TASK", "SLURM_ARRAY_TASK_ID", 0), ("TASKS", "SLURM_ARRAY_TASK_COUNT", 1)))
    (here / "answers").mkdir(exist_ok=True)
    given = {key: value(v) for key, v in (x.split("=", 1) for x in sys.argv[2:])}
    model = described(sys.argv[1], given)
    for path in sorted((here / "answers").glob("*.parquet")):
        found = (pq.read_schema(path).metadata or {}).get(MODEL, b"a model that it does not name").decode()
        if found != model:
            sys.exit(f"{path} is of {found}, and this is {model}: remove the answers, or emit into another folder")
    sequences = pq.ParquetFile(here / "sequences.parquet")
    options = {"max_logprobs": TOP_K, "enable_prefix_caching": False, **given}
    engine, tokens, seconds = None, 0, 0.0
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=TOP_K, flat_logprobs=True, detokenize=False)
    for number, batch in enumerate(sequences.iter_batches(batch_size=SEQUENCES_PER_FILE)):
        path = here / "answers" / f"{number:05}.parquet"
        if number % tasks != task % tasks or path.exists():
            continue
        engine = engine or LLM(model=sys.argv[1], skip_tokenizer_init=True, **options)
        rows, began = batch.to_pylist(), time.time()
        outputs = engine.generate([{"prompt_token_ids": row["ids"]} for row in rows], sampling)
        part = path.with_suffix(f".{os.getpid()}.part")
        pq.write_table(table(rows, outputs).replace_schema_metadata({MODEL: model}), part, compression="zstd")
        os.replace(part, path)
        tokens, seconds = tokens + sum(len(row["ids"]) for row in rows), seconds + time.time() - began
    print(f"task {task} of {tasks} is done: {tokens} tokens in {seconds:.1f} s")


if __name__ == "__main__":
    main()
