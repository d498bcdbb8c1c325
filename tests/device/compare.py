#!/usr/bin/env python3
"""Two tables of scores of the same tokens, joined on row and position. Prints JSON.

    python compare.py OURS.parquet THEIRS.parquet [--max-logprob X] [--mean-logprob X]

Exits with 1 if the log-probabilities are further apart than allowed, with 2 if the tables do not hold the same tokens.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

FLOATS = ["logprob", "entropy", "entropy_topk", "tail", "varentropy", "grad", "top_logprob"]


def read(path):
    table = pq.read_table(path, columns=["row", "pos", "token_id", "rank", "top_id", *FLOATS])
    columns = {name: table[name].to_numpy() for name in table.column_names}
    order = np.argsort(columns["row"].astype(np.uint64) << np.uint64(32) | columns["pos"].astype(np.uint64))
    return {name: values[order] for name, values in columns.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path)
    parser.add_argument("theirs", type=Path)
    parser.add_argument("--max-logprob", type=float, help="the largest difference allowed")
    parser.add_argument("--mean-logprob", type=float, help="the largest mean difference allowed")
    arguments = parser.parse_args()
    ours, theirs = read(arguments.ours), read(arguments.theirs)
    for key in ("row", "pos", "token_id"):
        if not np.array_equal(ours[key], theirs[key]):
            print(json.dumps({"error": f"the tables differ in `{key}`", "n_ours": len(ours[key]), "n_theirs": len(theirs[key])}))
            sys.exit(2)
    result = {"n": len(ours["row"])}
    for name in FLOATS:
        apart = np.abs(ours[name].astype(np.float64) - theirs[name].astype(np.float64))
        # A NaN on one side only is infinitely far away; max and mean of NaN would pass every comparison.
        apart = np.where(np.isnan(apart), np.inf, apart)
        result[f"mean_{name}"], result[f"max_{name}"] = float(apart.mean()), float(apart.max())
    worst = int(np.argmax(np.abs(ours["logprob"] - theirs["logprob"])))
    result["worst"] = {key: int(ours[key][worst]) for key in ("row", "pos", "token_id")}
    result["worst"] |= {"ours": float(ours["logprob"][worst]), "theirs": float(theirs["logprob"][worst])}
    result["ranks_equal"] = float((ours["rank"] == theirs["rank"]).mean())
    result["top_ids_equal"] = float((ours["top_id"] == theirs["top_id"]).mean())
    limits = [("max_logprob", arguments.max_logprob), ("mean_logprob", arguments.mean_logprob)]
    limits = [(name, limit) for name, limit in limits if limit is not None]
    result["passed"] = all(result[name] <= limit for name, limit in limits) if limits else None
    print(json.dumps(result))
    sys.exit(1 if result["passed"] is False else 0)


if __name__ == "__main__":
    main()
