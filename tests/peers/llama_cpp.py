#!/usr/bin/env python3
"""Writing speed beside llama.cpp: `diagnose rollout` and the same prompts in llama.cpp's server, greedy, in the same weights.

    python3 -m venv V && V/bin/pip install xllamacpp gguf numpy
    V/bin/python tests/peers/llama_cpp.py ROWS.jsonl --gguf MODEL.gguf [--type BF16] [--at-once 1 16] [--tokens 128] [--tries 3]

MODEL.gguf is written anew with every matrix in --type (BF16, F32, Q8_0 or Q4_0), which llama.cpp then reads; `diagnose` reads the original in
--dtype. llama.cpp writes --tokens for each prompt whatever it says; `diagnose` ends an answer at its end token, and its rate is that of what it
wrote. Rates are answers' tokens by the whole time, prompts included; they take turns, and medians are printed.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import gguf
import numpy
import xllamacpp

parser = argparse.ArgumentParser()
parser.add_argument("rows")
parser.add_argument("--gguf", required=True)
parser.add_argument("--type", default="BF16")
parser.add_argument("--dtype", default="bf16")
parser.add_argument("--at-once", type=int, nargs="+", default=[1, 16])
parser.add_argument("--tokens", type=int, default=128)
parser.add_argument("--tries", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--diagnose", default="target/release/diagnose")
options = parser.parse_args()


def rewritten(source: str, to: Path, kind: gguf.GGMLQuantizationType) -> None:
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(str(to), reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kinds = field.types
            writer.add_key_value(field.name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        kept = kind if len(tensor.shape) > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, gguf.quants.quantize(values.astype(numpy.float32), kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.gguf"
    rewritten(options.gguf, path, gguf.GGMLQuantizationType[options.type])
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_parallel = max(options.at_once)
    parameters.n_ctx = 1024 * parameters.n_parallel
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = options.threads
    parameters.n_gpu_layers = 0
    parameters.verbosity = 0
    server = xllamacpp.Server(parameters)

    def ours(n: int) -> tuple[float, list]:
        out = Path(folder) / "run"
        command = [options.diagnose, "rollout", options.rows, "--model", options.gguf, "--limit", str(n), "--temperature", "0", "--json",
                   "--max-new-tokens", str(options.tokens), "--dtype", options.dtype, "--batch", str(n), "--out", str(out)]
        run = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows = [json.loads(line) for line in open(out / "rollouts.jsonl")]
        subprocess.run(["rm", "-r", str(out)], check=True)
        return run["tokens_per_second"], rows

    def theirs(rows: list) -> float:
        lengths = []

        def ask(row: dict) -> None:
            question = {"messages": row["messages"][:-1], "max_tokens": options.tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
            lengths.append(server.handle_chat_completions(question)["usage"]["completion_tokens"])

        threads = [threading.Thread(target=ask, args=(row,)) for row in rows]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(lengths) / (time.perf_counter() - began)

    for n in options.at_once:
        rates = []
        for _ in range(options.tries):
            rate, rows = ours(n)
            rates.append((rate, theirs(rows)))
        a, b = (statistics.median(side) for side in zip(*rates))
        print(f"{n} at once: diagnose {a:.0f} tokens/s ({options.dtype}), llama.cpp {b:.0f} ({options.type}), ratio {a / b:.2f}, medians of {options.tries}")
