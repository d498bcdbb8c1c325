#!/usr/bin/env python3
"""Does LLaMA-Factory, given what `diagnose train --emit llama-factory` writes, train as diagnose does? Does axolotl take its folder?

    python3 -m venv V && V/bin/pip install llamafactory
    V/bin/python tests/peers/emitted.py ROWS.jsonl --folder HF_FOLDER [--rows 8] [--epochs 3] [--axolotl UNPACKED_WHEEL] [-- --lora ..]

HF_FOLDER is a trained model with the ChatML template, such as SmolLM2-135M-Instruct: where control tokens were never trained, gradients are not
those of a fine-tuning, and their norms are compared. A step holds all rows, so that their order does not matter; what stands behind `--` goes to diagnose: method, learning rate, --lora.
LLaMA-Factory runs on the processor, without the DeepSpeed line. Its labels reach beyond diagnose's by what the chat template writes
behind the end of a turn (in ChatML a line break, which costs nothing and counts in the mean), so that its losses are smaller by the
ratio of the targets; and EAFT's by (ln 20 / 3)^alpha. With both made up for, each step's loss must agree to --tolerance, and so must
the gradient's norm and the learning rate. Adapters begin with other random numbers: give --tolerance 2e-3 with --lora.

--axolotl: axolotl's own schema reads the folder written for it (`pip download --no-deps axolotl`, unzipped): no key is unknown to it.
"""

import argparse
import ast
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path)
parser.add_argument("--folder", required=True, type=Path)
parser.add_argument("--diagnose", default="target/release/diagnose")
parser.add_argument("--rows", type=int, default=8)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--tolerance", type=float, default=5e-4, help="of each number, relative: LLaMA-Factory prints four digits")
parser.add_argument("--axolotl", type=Path)
own, _, for_diagnose = " ".join(["", *sys.argv[1:], ""]).partition(" -- ")
arguments = parser.parse_args(own.split())


def targets_of(data, tokenizer):
    """Supervised tokens of ChatML rows as LLaMA-Factory counts them over those of diagnose: one line break more an answer."""
    ours = more = 0
    for line in data.read_text().splitlines():
        messages = json.loads(line)["messages"]
        for end, message in enumerate(messages):
            if message["role"] == "assistant":
                before = tokenizer.apply_chat_template(messages[:end], add_generation_prompt=True, tokenize=False)
                answer = tokenizer.apply_chat_template(messages[:end + 1], tokenize=False)[len(before):]
                turn = answer.rstrip("\n")
                ours += len(tokenizer.encode(turn, add_special_tokens=False))
                more += len(tokenizer.encode(answer[len(turn):], add_special_tokens=False))
    return (ours + more) / ours


def main():
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        data = work / "rows.jsonl"
        data.write_text("\n".join(arguments.data.read_text().splitlines()[:arguments.rows]) + "\n")
        train = [arguments.diagnose, "train", str(data), "--model", str(arguments.folder.resolve())]
        train += ["--batch-size", str(arguments.rows), "--epochs", str(arguments.epochs), *for_diagnose.split()]
        if arguments.axolotl:
            check_axolotl(train, work / "axolotl")
        subprocess.run([*train, "--out", str(work / "ours")], check=True, capture_output=True)
        subprocess.run([*train, "--emit", "llama-factory", "--out", str(work / "theirs")], check=True, capture_output=True)
        config = work / "theirs" / "train.yaml"
        lines = [line for line in config.read_text().splitlines() if not line.startswith("deepspeed:")]
        config.write_text("\n".join([*lines, "use_cpu: true"]) + "\n")
        command = [str(Path(sys.executable).parent / "llamafactory-cli"), "train", "train.yaml"]
        ran = subprocess.run(command, cwd=work / "theirs", capture_output=True, text=True)
        if ran.returncode != 0:
            sys.exit(ran.stderr[-3000:])
        log = (ran.stdout + ran.stderr).replace("\r", "\n")
        theirs = [ast.literal_eval("{" + line.split("{", 1)[1]) for line in log.splitlines() if "{'loss'" in line]
        seconds = next(json.loads(path.read_text())["train_runtime"] for path in (work / "theirs").glob("output/train_results.json"))
        ours = [json.loads(line) for line in (work / "ours" / "metrics.jsonl").read_text().splitlines()]
        record = json.loads((work / "ours" / "run.json").read_text())
        ratio = 1 / targets_of(data, AutoTokenizer.from_pretrained(arguments.folder))
        gate = next((line.split(": ")[1] for line in lines if line.startswith("eaft_alpha")), None)
        ratio *= (math.log(20) / 3) ** float(gate) if gate else 1.0

    print(f"{len(ours)} steps; loss and gradient norm of LLaMA-Factory are {ratio:.5f} of ours by its definitions")
    worst = 0.0
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True), 1):
        pairs = [(a["loss"] * ratio, float(b["loss"])), (a["gradient_norm"] * ratio, float(b["grad_norm"])),
                 (a["learning_rate"], float(b["learning_rate"]))]
        errors = [abs(x - y) / max(abs(y), 1e-12) for x, y in pairs]
        worst = max(worst, *errors)
        print(f"  {step}: " + ", ".join(f"{name} {x:.5g} theirs {y:.5g}" for name, (x, y) in
                                        zip(["loss", "gradient norm", "learning rate"], pairs)))
    print(f"largest relative difference {worst:.1e}; {record['seconds']:.0f} s of steps, LLaMA-Factory {seconds:.0f} s")
    sys.exit(worst > arguments.tolerance)


def check_axolotl(train, out):
    import yaml

    # The default is a share of the steps: one of a short run, of which axolotl makes two, so that it is refused.
    warmup = [] if any(word.startswith("--warmup") for word in train) else ["--warmup-steps", "0"]
    subprocess.run([*train, *warmup, "--emit", "axolotl", "--out", str(out)], check=True, capture_output=True)
    sys.path.insert(0, str(arguments.axolotl))
    from axolotl.utils.schemas.config import AxolotlInputConfig

    config = yaml.safe_load((out / "train.yaml").read_text())
    AxolotlInputConfig(**config)
    unknown = set(config) - set(AxolotlInputConfig.model_fields)
    print(f"axolotl reads its folder; unknown keys: {sorted(unknown) or 'none'}")
    if unknown:
        sys.exit(1)


main()
