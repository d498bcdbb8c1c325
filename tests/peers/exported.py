#!/usr/bin/env python3
"""Do the trainers learn from what `diagnose export` writes exactly what the decisions have left? By their own loading code.

    python3 -m venv V && V/bin/pip install trl            (or llamafactory, or axolotl: their pins exclude one another)
    V/bin/python tests/peers/exported.py trl [--diagnose target/release/diagnose] [--model tests/fixtures/families/llama]

Small conversations are scored with a tiny model, decided about (turns and spans are masked, a row is dropped, as far as the format can say
so), exported and given to the trainer, which tokenises and labels them itself. Each row's labels are compared, place by place and id by
id, with the tokens of tokens.parquet that no decision has taken.

What the chat template writes behind the end of a turn (in ChatML a line break) is learnt by LLaMA-Factory, and by TRL in a completion, and
not by diagnose; such a label counts as no difference where it follows the end of an answer that is learnt, and is counted in what is printed.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("trainer", choices=["trl", "llama-factory", "axolotl"])
parser.add_argument("--diagnose", default="target/release/diagnose")
parser.add_argument("--model", type=Path, default=Path("tests/fixtures/families/llama"), help="a folder whose tokenizer has ChatML's marks")
arguments = parser.parse_args()
DIAGNOSE = str(Path(arguments.diagnose).resolve())

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
    "{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PLAIN_CHATML = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")

ANSWERS = ["It is Lyon.", "né, 12 of them", "because 🙂 so", "yes,  it\tis", "名古屋市です。", "no"]


def rows():
    made = []
    for n in range(9):
        turns = [{"role": "system", "content": "Be brief."}] if n % 3 == 0 else []
        for k in range(1 + n % 3):
            turns.append({"role": "user", "content": f"Question {n}.{k}?"})
            turns.append({"role": "assistant", "content": ANSWERS[(n + k) % len(ANSWERS)]})
        made.append({"id": f"r{n}", "messages": turns})
    return made


def model_folder(work, template):
    folder = work / "model"
    shutil.copytree(arguments.model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 2048
    (folder / "config.json").write_text(json.dumps(config))
    # LLaMA-Factory puts the end token behind every answer. For the others it is not what ends a turn, as in many base models.
    end = "<|im_end|>" if arguments.trainer == "llama-factory" else "<|endoftext|>"
    marks = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "pad_token": "<|endoftext|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(marks))
    return folder


def tokens(run):
    """Of each row the supervised tokens: (turn, begin, end, pos, id)."""
    import pandas

    found = {}
    for row in pandas.read_parquet(run / "tokens.parquet").itertuples():
        found.setdefault(row.row, []).append((row.turn, row.begin, row.end, row.pos, row.token_id))
    return found


def decide(work, run, supervised, can_mask):
    """Decisions of the kinds that the trainer knows; gives what they leave of each row, in the order of the rows."""
    record = json.loads((run / "run.json").read_text())
    lines = [{"decisions": 1, "run": record["identity"], "data": [{"path": f["path"], "sha256": f["sha256"]} for f in record["data"]]}]
    texts = [row["messages"] for row in rows()]
    left = {}
    for row, own in supervised.items():
        if row == 4:
            lines.append({"row": row, "action": "drop"})
            continue
        masked = set()
        turns = sorted({turn for turn, *_ in own})
        if "turns" in can_mask and row % 2 == 0 and len(turns) > 1:
            lines.append({"row": row, "action": "mask", "turn": turns[0]})
            masked |= {token for token in own if token[0] == turns[0]}
        if "all but the last" in can_mask:
            for turn in turns[:-1]:
                lines.append({"row": row, "action": "mask", "turn": turn})
            masked |= {token for token in own if token[0] != turns[-1]}
        if "spans" in can_mask:
            text = texts[row][turns[-1]]["content"].encode()
            whole = [n for n in range(len(text) + 1) if n == len(text) or text[n] & 0xC0 != 0x80]
            begin, end = whole[len(whole) // 3], whole[2 * len(whole) // 3]
            # Where a mask begins within a text, axolotl cannot say so of a character of several tokens; diagnose refuses it.
            if begin < end and (begin == 0 or text[begin] < 0x80):
                lines.append({"row": row, "action": "mask", "turn": turns[-1], "begin": begin, "end": end})
                masked |= {t for t in own if t[0] == turns[-1] and t[1] < end and begin < t[2]}
        left[row] = [(pos, token) for token in own if token not in masked for pos, token in [token[3:]]]
    (work / "decisions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return list(left.values())


def run(*command, cwd):
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def compare(name, loaded, expected, end_id):
    """`loaded`: of each row the ids and the labels."""
    assert len(loaded) == len(expected), f"{name}: {len(loaded)} rows, expected {len(expected)}"
    n_labels = n_behind = 0
    for n, ((ids, labels), own) in enumerate(zip(loaded, expected)):
        found = [(pos, label) for pos, label in enumerate(labels) if label != -100]
        assert all(ids[pos] == label for pos, label in found), f"{name}, row {n}: a label is not its token"
        behind = {pos for pos, _ in found if (pos - 1, end_id) in own and (pos, ids[pos]) not in own}
        found = [(pos, label) for pos, label in found if pos not in behind]
        assert found == own, f"{name}, row {n}:\n{found}\nexpected\n{own}"
        n_labels += len(found)
        n_behind += len(behind)
    print(f"{name}: {len(loaded)} rows, {n_labels} labels as decided; {n_behind} more behind the ends of turns")


def trl(file, folder, **options):
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    dataset = load_dataset("json", data_files=str(file), split="train")
    config = SFTConfig(output_dir=str(file.parent / "trl"), max_length=None, report_to="none", use_cpu=True, bf16=False, **options)
    trainer = SFTTrainer(model=str(folder), args=config, train_dataset=dataset)
    # The labels are those that the collator hands to the model.
    batches = [trainer.data_collator([row]) for row in trainer.train_dataset]
    return [(batch["input_ids"][0].tolist(), batch["labels"][0].tolist()) for batch in batches]


def llama_factory(file, folder):
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    options = {"model_name_or_path": str(folder), "stage": "sft", "do_train": True, "finetuning_type": "full", "dataset_dir": str(file.parent),
               "dataset": file.stem, "cutoff_len": 2048, "output_dir": str(file.parent / "lf"), "overwrite_cache": True, "report_to": "none"}
    model_args, data_args, training_args, _, _ = get_train_args(options)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    dataset = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)["train_dataset"]
    collator = SFTDataCollatorWith4DAttentionMask(template=template, model=None, label_pad_token_id=-100, **module)
    loaded = []
    for row in dataset:
        batch = collator([dict(row)])
        n = len(row["input_ids"])
        loaded.append((batch["input_ids"][0].tolist()[:n], batch["labels"][0].tolist()[:n]))
    return loaded


def axolotl(file, folder):
    import yaml
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.utils.dict import DictDefault
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = yaml.safe_load(file.with_name(f"{file.stem}.axolotl.yaml").read_text())
    told = config["datasets"][0]
    strategy = load(tokenizer, DictDefault({"train_on_inputs": False, "sequence_len": 2048, "eot_tokens": config["eot_tokens"]}), ds_cfg=told)
    rows = load_dataset(told["ds_type"], data_files=str(file), split="train")
    made = [strategy.tokenize_prompt(row) for row in rows]
    return [(row["input_ids"], row["labels"]) for row in made]


def main():
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
        folder = model_folder(work, CHATML if arguments.trainer == "trl" else PLAIN_CHATML)
        run(DIAGNOSE, "rows.jsonl", "--model", folder, "--out", "run", "--device", "cpu", cwd=work)
        supervised = tokens(work / "run")
        end_id = next(own[-1][4] for own in supervised.values())

        def export(name, form, can_mask):
            expected = decide(work, work / "run", supervised, can_mask)
            command = [DIAGNOSE, "export", "run", "--format", form, "--out", name, "--decisions", "decisions.jsonl"]
            run(*command, cwd=work)
            return work / name, expected

        if arguments.trainer == "trl":
            file, expected = export("completions.jsonl", "trl", ["all but the last"])
            compare("trl, completions", trl(file, folder), expected, end_id)
            file, expected = export("answers.jsonl", "trl", [])
            compare("trl, assistant_only_loss", trl(file, folder, assistant_only_loss=True), expected, end_id)
        elif arguments.trainer == "llama-factory":
            file, expected = export("rows_lf.jsonl", "llama-factory", [])
            compare("llama-factory", llama_factory(file, folder), expected, end_id)
            file, expected = export("rows_alpaca.jsonl", "alpaca", [])
            info = json.loads((work / "dataset_info.json").read_text())
            columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
            info[file.stem] = {"file_name": file.name, "columns": columns}
            (work / "dataset_info.json").write_text(json.dumps(info))
            compare("llama-factory, alpaca", llama_factory(file, folder), expected, end_id)
        else:
            file, expected = export("rows_ax.jsonl", "axolotl", ["turns", "spans"])
            compare("axolotl", axolotl(file, folder), expected, end_id)
            file, expected = export("rows_ax.parquet", "axolotl", ["turns", "spans"])
            compare("axolotl, parquet", axolotl(file, folder), expected, end_id)


main()
