"""What tests/python/run.sh runs: the module on a few rows of the data, then every notebook from its first cell to its last."""

import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import diagnose_sft

data, work = sys.argv[1], Path(sys.argv[2])

# The example of the README.
run = diagnose_sft.run(data, limit=5, out=work / "runs" / "from-python", quiet=True)
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

for path in sorted(Path("notebooks").glob("*.ipynb")):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(work)}}).execute()
    print(f"{path}: {sum(cell.cell_type == 'code' for cell in notebook.cells)} cells ran")
