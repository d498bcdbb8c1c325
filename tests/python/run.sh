#!/usr/bin/env bash
# The Python module and the notebooks, headless: `tests/python/run.sh PROGRAM WORK_FOLDER`, for .ci/run. Installs what the notebooks import into an
# environment of its own; the module comes from the source, the program from PROGRAM.
set -euo pipefail
program=$(realpath "$1") work=$(realpath -m "$2")
cd "$(dirname "$0")/../.."
python3 -m venv "$work/python"
"$work/python/bin/pip" install -q --no-cache-dir pandas jinja2 pyarrow polars matplotlib nbclient ipykernel
# Where the wheel would put it.
ln -sf "$program" "$work/python/bin/diagnose"
export PYTHONPATH=$PWD/packaging/python

"$program" data/demo.jsonl --limit 40 --out "$work/runs/demo" 2>/dev/null >/dev/null
for method in sft eaft; do
  "$program" train data/demo.jsonl --limit 12 --method "$method" --lora --max-steps 2 --batch-size 4 --eval-every 1 --validation-share 0.2 \
    --max-len 256 --out "$work/runs/$method" 2>/dev/null >/dev/null
done
"$work/python/bin/python" tests/python/check.py data/demo.jsonl "$work"
