"""What tests/python/run.sh runs: the module on a few rows of the data, then every notebook from its first cell to its last."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import diagnose_sft

here = os.getcwd()
data, work = str(Path(sys.argv[1]).resolve()), Path(sys.argv[2]).resolve()

# The example of the README.
run = diagnose_sft.run(data, limit=5, out=work / "runs" / "from-python", quiet=True, json=True)
assert run.rows.height == 5 and run.tokens.height > 50, (run.rows, run.tokens)
assert set(run.tokens["quadrant"].unique()) <= {"confident_conflict", "uncertain", "confident", "hesitant"}
assert run.summary["overall"]["tokens"] == run.tokens.height and run.record["version"] and run.figures and "# " in run.report
again = diagnose_sft.Run(run.folder)
assert again.tokens.equals(run.tokens) and repr(again) == repr(run)

try:
    diagnose_sft.run(work / "missing.jsonl", quiet=True)
except subprocess.CalledProcessError as error:
    assert "missing.jsonl" in error.stderr and error.returncode != 0, error.stderr
else:
    raise AssertionError("a missing file was scored")
try:
    diagnose_sft.Run(work)
except FileNotFoundError as error:
    assert "run.json" in str(error)
else:
    raise AssertionError("a folder without a run was taken for one")

# A folder of data that is called as a command is.
(work / "train").mkdir()
(work / "train" / "rows.jsonl").write_text(Path(data).read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
os.chdir(work)
named = diagnose_sft.run("train", out=work / "runs" / "from-train", quiet=True, chat_template_kwargs={"enable_thinking": False})
os.chdir(here)
assert named.rows.height == 1, named.rows

# What makes no run gives its folder.
beside = diagnose_sft.run([run.folder, named.folder], out=work / "runs" / "beside", quiet=True)
assert isinstance(beside, Path) and (beside / "landscapes.png").is_file(), beside
(work / "text.jsonl").write_text('{"text": "Some words."}\n', encoding="utf-8")
model = Path("tests/fixtures/families/qwen3").resolve()
emitted = diagnose_sft.run(work / "text.jsonl", model=model, emit="vllm-offline", out=work / "runs" / "emitted", quiet=True)
assert isinstance(emitted, Path) and (emitted / "vllm_offline.py").is_file(), emitted
for name in ["help", "version"]:
    try:
        diagnose_sft.run(data, **{name: True})
    except TypeError as error:
        assert f"diagnose --{name}" in str(error), error
    else:
        raise AssertionError(f"{name} scored something")

# A dict repeats an option, as a list does.
rows = [{"q": "What is it?", "a": "A test.", "n": 1}, {"q": "And that?", "a": "Another one.", "n": 2}]
(work / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
mapped = diagnose_sft.run(work / "own.jsonl", map={"prompt": "q", "completion": "a"}, out=work / "runs" / "mapped", quiet=True)
listed = diagnose_sft.run(work / "own.jsonl", map=["prompt=q", "completion=a"], out=work / "runs" / "listed", quiet=True)
assert mapped.rows.height == 2 and mapped.tokens.equals(listed.tokens), mapped.rows
turns = [{"role": "patient", "content": "It hurts."}, {"role": "doctor", "content": "Where?"}]
(work / "roles.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
spoken = diagnose_sft.run(
    work / "roles.jsonl", role={"patient": "user", "doctor": "assistant"}, out=work / "runs" / "spoken", quiet=True
)
assert spoken.rows.height == 1 and spoken.tokens.height > 0, spoken.rows

# An interrupt reaches the program twice, by the group of processes and by the module: it is one, and keeps what is under way.
interrupted = subprocess.Popen(
    [sys.executable, "-c", "import sys, diagnose_sft; diagnose_sft.run(sys.argv[1], out=sys.argv[2])", data, work / "runs" / "cut"],
    stderr=subprocess.PIPE, text=True, start_new_session=True,
)
while not (work / "runs" / "cut" / "parts" / "identity.json").exists():
    assert interrupted.poll() is None, interrupted.communicate()[1]
    time.sleep(0.1)
time.sleep(1)
os.killpg(interrupted.pid, signal.SIGINT)
said = interrupted.communicate()[1]
assert "KeyboardInterrupt" in said and "the current part is finished and kept" in said, said
# The part that was under way is kept, or was the last one.
cut = work / "runs" / "cut"
assert list((cut / "parts").glob("*.parquet")) or (cut / "tokens.parquet").exists(), said

for path in sorted(Path("notebooks").glob("*.ipynb")):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(work)}}).execute()
    print(f"{path}: {sum(cell.cell_type == 'code' for cell in notebook.cells)} cells ran")
