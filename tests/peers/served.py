"""What a vLLM server makes of `diagnose --server`: its speed beside that of a bare client, and its scores and answers beside our own engine's.

    diagnose DATA --model FOLDER --server URL --in-flight 2048 --out RUN
    python served.py speed RUN URL --in-flight 2048

Sends prompts of the lengths of the run's rows, with no more tokens under way than that, reads each answer to its end and drops it: no JSON is
parsed, nothing is computed.

    python served.py answers DIAGNOSE FOLDER URL OUT --rows DATA

Evaluates 40 questions of `probe` here and through the server, has 20 prompts of DATA answered by the most probable tokens on both sides, and prompts answered at
temperature 1 by the server, which are then scored here: their mean surplus must be near 0. The server is to run FOLDER in f32.

Needs pandas with pyarrow.
"""

import argparse
import http.client
import json
import subprocess
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from urllib.parse import urlparse

import pandas as pd


def speed(arguments):
    rows = pd.read_parquet(arguments.run / "rows.parquet")
    # The run asks nothing of the line break behind the last supervised token.
    lengths = [int(n) - 1 for n in rows[rows.skipped.isna()].tokens]
    address = urlparse(arguments.url)
    room = threading.Condition()
    under_way = 0
    queue = SimpleQueue()
    for i, n in enumerate(lengths):
        queue.put([1 + (i * 7919 + j * 104729) % 40000 for j in range(n)])

    def work():
        nonlocal under_way
        connection = http.client.HTTPConnection(address.hostname, address.port)
        while not queue.empty():
            ids = queue.get()
            with room:
                room.wait_for(lambda: under_way == 0 or under_way + len(ids) <= arguments.in_flight)
                under_way += len(ids)
            body = {"prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 20, "return_token_ids": True}
            try:
                connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
                answer = connection.getresponse()
            except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
                # The server closes what was idle for some seconds.
                connection.close()
                connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
                answer = connection.getresponse()
            size = len(answer.read())
            assert answer.status == 200 and size > 1000 * len(ids), (answer.status, size)
            with room:
                under_way -= len(ids)
                room.notify_all()

    began = time.time()
    threads = [threading.Thread(target=work) for _ in range(min(arguments.connections, len(lengths)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.time() - began
    record = json.loads((arguments.run / "run.json").read_text())
    ours = record["seconds"]["input_tokens"] / record["seconds"]["wall"]
    bare = sum(lengths) / seconds
    print(f"{len(lengths)} prompts, {sum(lengths)} tokens: bare {bare:.1f} tokens/s in {seconds:.1f} s, diagnose {ours:.1f} tokens/s")


def answers(arguments):
    out, url = arguments.out, ["--server", arguments.url]

    def diagnose(name, *words):
        began = time.time()
        command = [str(arguments.diagnose), *words, "--model", str(arguments.model), "--out", str(out / name)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"  {name}: {time.time() - began:.1f} s", flush=True)

    def rollouts(name):
        return [json.loads(line) for line in (out / name / "rollouts.jsonl").open()]

    for name, more in [("eval-own", []), ("eval-server", url)]:
        diagnose(name, "eval", "--tasks", "probe", "--limit", "40", *more)
    own, served = (pd.read_parquet(out / name / "samples.parquet") for name in ("eval-own", "eval-server"))
    assert (own.id == served.id).all() and (own.choice == served.choice).all() and (own.tokens == served.tokens).all()
    apart = (own.logprob - served.logprob).abs()
    print(
        f"log-likelihoods: {own.id.nunique()} items, {len(own)} continuations: {apart.max():.1e} nat apart at most, {apart.mean():.1e} on the mean; "
        f"another choice in {(own.picked != served.picked).sum()}, greedy differs in {(own.greedy != served.greedy).sum()}"
    )
    assert apart.max() < 2e-3

    greedy = ["rollout", str(arguments.rows), "--limit", "20", "--max-new-tokens", "64", "--temperature", "0"]
    for what, stops in [("greedy", []), ("stopped", ["--stop", ".", "--stop", ", "])]:
        for name, more in [(f"{what}-own", []), (f"{what}-server", url)]:
            diagnose(name, *greedy, *stops, *more)
        both = zip(rollouts(f"{what}-own"), rollouts(f"{what}-server"), strict=True)
        pairs = [([*a["rollout"]["ids"], a["rollout"]["ended"]], [*b["rollout"]["ids"], b["rollout"]["ended"]]) for a, b in both]
        places = [next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b))) for a, b in pairs if a != b]
        equal, n_tokens = len(pairs) - len(places), sum(len(a) - 1 for a, _ in pairs)
        print(f"{what}: {equal} of {len(pairs)} answers are equal, {n_tokens} tokens; the others part at {places}")

    drawn = ["rollout", str(arguments.rows), "--limit", str(arguments.prompts), "--n", "2", "--max-new-tokens", "64", "--temperature", "1"]
    diagnose("drawn", *drawn, *url)
    diagnose("scores", str(out / "drawn" / "rollouts.jsonl"), "--no-view")
    tokens = pd.read_parquet(out / "scores" / "tokens.parquet", columns=["row", "logprob", "entropy"])
    surplus = -tokens.logprob - tokens.entropy
    # Rows are independent of each other; within one the surpluses of a model's own tokens do not add up to anything either.
    by_row = surplus.groupby(tokens.row).sum()
    stderr = (by_row**2).sum() ** 0.5 / len(tokens)
    n_drawn = sum(len(row["rollout"]["ids"]) for row in rollouts("drawn"))
    report = json.loads((out / "scores" / "run.json").read_text())["counts"]["rollouts"]
    print(
        f"drawn: {len(by_row)} answers, {n_drawn} tokens drawn, {len(tokens)} scored, {report['respelt']} rows respelt; mean surplus {surplus.mean():+.4f} nat, "
        f"standard error {stderr:.4f}"
    )
    assert abs(surplus.mean()) < 3 * stderr


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
modes = parser.add_subparsers(required=True)
mode = modes.add_parser("speed")
mode.add_argument("run", type=Path)
mode.add_argument("url")
mode.add_argument("--in-flight", type=int, default=8192)
mode.add_argument("--connections", type=int, default=64)
mode.set_defaults(run_mode=speed)
mode = modes.add_parser("answers")
mode.add_argument("diagnose", type=Path)
mode.add_argument("model", type=Path)
mode.add_argument("url")
mode.add_argument("out", type=Path)
mode.add_argument("--rows", type=Path, required=True)
mode.add_argument("--prompts", type=int, default=60)
mode.set_defaults(run_mode=answers)
arguments = parser.parse_args()
arguments.run_mode(arguments)
