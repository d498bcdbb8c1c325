"""Scores the shards of a data set as tasks of Ray, on whatever machines its cluster has, and joins them.

    python examples/shards_ray.py 4 runs/scores data.jsonl --model org/name
    ray job submit --working-dir . -- python examples/shards_ray.py 4 runs/scores data.jsonl --model org/name

`diagnose` must be on the path of every machine, and the data, the model and the folder of the runs must lie where all of them see them. A task that
is lost with its machine is given again and goes on where it stopped.
"""

import os
import subprocess
import sys

import ray


@ray.remote(num_cpus=float(os.environ.get("CPUS", "1")), max_retries=3)
def score(folder, shard, shards, out, arguments):
    command = ["diagnose", *arguments, "--shard", f"{shard}/{shards}", "--out", f"{out}-shard-{shard}-of-{shards}", "--no-view"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    # A wrong command stays wrong; what ended by a signal is tried again by Ray.
    if done.returncode < 0:
        os._exit(1)
    return done.returncode, done.stderr


shards, out, arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
ray.init(ignore_reinit_error=True)
for returncode, said in ray.get([score.remote(os.getcwd(), shard, shards, out, arguments) for shard in range(shards)]):
    if returncode != 0:
        sys.exit(said)
sys.exit(subprocess.run(["diagnose", f"{out}-shard-*-of-{shards}", "--out", out]).returncode)
