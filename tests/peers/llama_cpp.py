#!/usr/bin/env python3
"""Writing speed beside llama.cpp: `diagnose rollout` and the same prompts in llama.cpp's server, greedy, in the same weights.

    python3 -m venv V && V/bin/pip install gguf numpy
    V/bin/python tests/peers/llama_cpp.py ROWS.jsonl --gguf MODEL.gguf --server llama-server [--type BF16] [--at-once 1 16] [--tokens 128] [--tries 3]

llama-server is to be built for this machine (`cmake -DGGML_NATIVE=ON`); without --server the wheel xllamacpp takes its place, which knows AVX2
only. MODEL.gguf is written anew with every matrix in --type (BF16, F32, Q8_0, Q4_0 or Q4_1), and both read that; `diagnose` multiplies in --dtype, where
f32 takes the file's own blocks. llama.cpp writes --tokens for each prompt whatever it says; `diagnose` ends an answer at its end token, and its rate is that of what it
wrote. Rates are answers' tokens by the whole time, prompts included; they take turns, and medians are printed.
"""

import argparse
import json
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import gguf
import numpy

parser = argparse.ArgumentParser()
parser.add_argument("rows")
parser.add_argument("--gguf", required=True)
parser.add_argument("--server", help="llama-server, built for this machine")
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


class Wheel:
    """xllamacpp's server, in this process."""

    def __init__(self, path: Path, at_once: int):
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_parallel = at_once
        parameters.n_ctx = 1024 * at_once
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = options.threads
        parameters.n_gpu_layers = 0
        parameters.verbosity = 0
        self.server = xllamacpp.Server(parameters)

    def answer(self, question: dict) -> dict:
        return self.server.handle_chat_completions(question)

    def close(self) -> None:
        pass


class Native:
    """llama-server, as a process of its own."""

    def __init__(self, path: Path, at_once: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [options.server, "-m", path, "-np", at_once, "-c", 1024 * at_once, "-t", options.threads, "-tb", options.threads, "-ngl", 0, "--port", port]
        self.process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health").read()
                return
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None:
                    raise SystemExit(f"{options.server} has ended") from None
                time.sleep(0.2)

    def answer(self, question: dict) -> dict:
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", json.dumps(question).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.gguf"
    rewritten(options.gguf, path, gguf.GGMLQuantizationType[options.type])
    server = (Native if options.server else Wheel)(path, max(options.at_once))

    def ours(n: int) -> tuple[float, list]:
        out = Path(folder) / "run"
        command = [options.diagnose, "rollout", options.rows, "--model", str(path), "--limit", str(n), "--temperature", "0", "--json",
                   "--max-new-tokens", str(options.tokens), "--dtype", options.dtype, "--batch", str(n), "--out", str(out)]
        run = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows = [json.loads(line) for line in open(out / "rollouts.jsonl")]
        subprocess.run(["rm", "-r", str(out)], check=True)
        return run["tokens_per_second"], rows

    def theirs(rows: list) -> float:
        lengths = []

        def ask(row: dict) -> None:
            question = {"messages": row["messages"][:-1], "max_tokens": options.tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
            lengths.append(server.answer(question)["usage"]["completion_tokens"])

        threads = [threading.Thread(target=ask, args=(row,)) for row in rows]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        assert len(lengths) == len(rows), f"{len(lengths)} of {len(rows)} answers came"
        return sum(lengths) / seconds

    try:
        for n in options.at_once:
            rates = []
            for _ in range(options.tries):
                rate, rows = ours(n)
                rates.append((rate, theirs(rows)))
            a, b = (statistics.median(side) for side in zip(*rates))
            print(f"{n} at once: diagnose {a:.0f} tokens/s ({options.dtype}), llama.cpp {b:.0f} ({options.type}), ratio {a / b:.2f}, medians of {options.tries}")
    finally:
        server.close()
