#!/usr/bin/env python3
"""One run of diagnose, measured: prints what run.json says of it, and the card's memory meanwhile, as JSON.

    python ours.py BINARY MODEL ROWS.jsonl[:N] --device cuda --dtype bf16 --out FOLDER [--timeout 60] [--errors FILE]

Memory of the card is that of all processes, less what was in use before: what nvidia-smi shows, read by its library 50 times a second.
"""

import argparse
import ctypes
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

QUERY = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]


class Used(ctypes.Structure):
    """nvmlMemory_t"""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def nvml():
    """A function that gives the bytes in use on card 0, by the library that nvidia-smi is made of; None without it."""
    try:
        library, card = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
        if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(card)):
            return None
    except (OSError, AttributeError):
        return None

    def used():
        memory = Used()
        return None if library.nvmlDeviceGetMemoryInfo(card, ctypes.byref(memory)) else memory.used

    return used


def by_program():
    done = subprocess.run(QUERY, capture_output=True, text=True, timeout=20)
    return int(done.stdout.split()[0]) * 2**20 if done.returncode == 0 else None


class CardMemory(threading.Thread):
    """The peak between entering and leaving, less what was in use before; None where nobody tells."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak_bytes, self.seen, self.done = None, [], threading.Event()
        self.used, self.pause = nvml(), 0.02
        if self.used is None and shutil.which("nvidia-smi"):
            self.used, self.pause = by_program, 0.2

    def run(self):
        try:
            while not self.done.wait(self.pause):
                self.seen.append(self.used())
        except Exception as error:
            print(f"memory of the card: {error}", file=sys.stderr)

    def __enter__(self):
        if self.used:
            self.before = self.used()
            self.start()
        return self

    def __exit__(self, *_):
        if self.used:
            self.done.set()
            self.join()
            seen = [used for used in self.seen if used is not None]
            self.peak_bytes = max(seen) - (self.before or 0) if seen else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", metavar="ROWS[:N]")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--out", type=Path, required=True, help="removed first")
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("--errors", type=Path, help="stderr is added to this file")
    arguments = parser.parse_args()
    file, _, limit = arguments.rows.rpartition(":") if arguments.rows.rpartition(":")[2].isdigit() else (arguments.rows, "", "")
    shutil.rmtree(arguments.out, ignore_errors=True)
    command = [arguments.binary, file, "--model", str(arguments.model), "--device", arguments.device, "--dtype", arguments.dtype]
    command += ["--out", str(arguments.out), "--max-len", "8192", "--format", "text"] + (["--limit", limit] if limit else [])
    result = {
        "who": "diagnose", "model": arguments.model.name, "rows": Path(file).name, "device": arguments.device, "dtype": arguments.dtype,
    }
    began = time.perf_counter()
    try:
        with CardMemory() as memory:
            quiet = dict(stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
            done = subprocess.run(command, timeout=arguments.timeout, **quiet)
        code, errors = done.returncode, done.stderr
    except subprocess.TimeoutExpired as late:
        said = late.stderr or b""
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        code, errors = 124, f"{said}\nstopped after {arguments.timeout:.0f} s"
    result |= {"rc": code, "whole_seconds": time.perf_counter() - began, "card_peak_bytes": memory.peak_bytes}
    if arguments.errors:
        with arguments.errors.open("a") as to:
            shown = [Path(command[0]).name, Path(file).name, "--model", arguments.model.name, *command[4:8]]
            to.write(f"$ {' '.join(shown)}\n{errors}\n")
    if code:
        result["error"] = errors.strip()[-1500:]
    else:
        run = json.loads((arguments.out / "run.json").read_text())
        result |= {key: run[key] for key in ("tokens_per_second", "peak_memory_bytes", "seconds_to_first_row", "seconds", "counts")}
        # What else it says about memory and the card.
        words = ("memory", "card", "gpu")
        result |= {key: run[key] for key in run if key not in result and any(word in key for word in words)}
        result["computed_on"] = run["device"]
    print(json.dumps(result))
    sys.exit(code)


if __name__ == "__main__":
    main()
