"""The speed of a bare client of a vLLM server, beside which that of `diagnose --server` is measured.

    diagnose DATA --model FOLDER --server URL --in-flight 2048 --out RUN
    python served.py RUN URL --in-flight 2048

Sends prompts of the lengths of the run's rows, with no more tokens under way than that, reads each answer to its end and drops it: no JSON is
parsed, nothing is computed. Needs pandas with pyarrow.
"""

import argparse
import http.client
import json
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from urllib.parse import urlparse

import pandas as pd

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", type=Path)
parser.add_argument("url")
parser.add_argument("--in-flight", type=int, default=8192)
parser.add_argument("--connections", type=int, default=64)
arguments = parser.parse_args()

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
    global under_way
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
