#!/usr/bin/env bash
# Everything that needs a card, in one go, on a machine that has Python, PyTorch and Transformers.
#
#     tests/device/run.sh BINARY TESTBINARY OUT [SECONDS]
#
# BINARY is diagnose; TESTBINARY the library's unit tests, `-` for none (`cargo test --release --no-run` names it). Either may end in .xz,
# .gz or .zst.
# All steps keep within SECONDS (560): what no longer fits is skipped, and the table says so. A step that fails stops no other, and what
# says whether the numbers are right comes before what says how fast they come.
# OUT gets table.md (also printed last), results.jsonl, log.txt, tests.txt, sanitizer.txt, profile.txt.
#
#     STEPS="tests parity alike sanitizer speed written profile"     what to do
#     MODELS="0.6b 30b-a3b 3.5-4b 8b 135m"   on which shapes, the first first
#     REPEATS=3                              runs of diagnose for each speed, while time is left
#     FILTER="kernels:: cuda_tests"          which unit tests
#     INTEGRATION=file                       the binary of tests/tests.rs: every family, shared prefixes and answers on the device
#     LAYERS_8B=6  SIZE=full|tiny            tiny tries the script itself
#     DEVICE=cuda                            cpu tries the script itself
#     WORK=folder                            for models and tables; kept if given
#     BUILT_AT=folder                        where the test binaries were built: made a link to this checkout, for their fixtures
#     EXE_AT=file                            the program that INTEGRATION starts (TARGET/release/diagnose): made a link to BINARY
#
# To carry little, give each binary in one form only; xz -9 makes a fifth of them.
#     LD_LIBRARY_PATH=EMULATED SIZE=tiny MODELS="135m 30b-a3b" tests/device/run.sh BINARY TESTBINARY OUT      without a card
set -u

[ $# -ge 3 ] || { sed -n '2,/^set -u/{/^#/p}' "$0" >&2; exit 2; }
binary=$1 tests=$2 out=$3 seconds=${4:-560}
steps=${STEPS:-tests parity alike sanitizer speed written profile} models=${MODELS:-0.6b 30b-a3b 3.5-4b 8b 135m} repeats=${REPEATS:-3}
# What compilers say of the kernels is known without a card.
filter=${FILTER:-kernels:: cuda_tests engine::tests engine::generate --skip compiles_for_every_generation}
size=${SIZE:-full} device=${DEVICE:-cuda} layers=${LAYERS_8B:-6}

began=$(date +%s)
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
if [ -n "${WORK:-}" ]; then
    mkdir -p "$WORK" && work=$(cd "$WORK" && pwd) || exit 1
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
results=$out/results.jsonl log=$out/log.txt
: >"$results" >"$log"
export TOKENIZERS_PARALLELISM=true HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error PYTHONUNBUFFERED=1

# Seconds that are left for steps; the table needs a few.
left() { echo $((began + seconds - 5 - $(date +%s))); }
has() { case " $1 " in *" $2 "*) true ;; *) false ;; esac; }
# record KIND: lines of JSON on stdin -> results.jsonl. Other lines go to the log.
record() {
    python3 -c '
import json, sys
for line in sys.stdin:
    try:
        value = json.loads(line)
        assert isinstance(value, dict)
        print(json.dumps({"kind": sys.argv[1], "value": value | json.loads(sys.argv[2])}))
    except (ValueError, AssertionError):
        sys.stderr.write(line)
' "$1" "${2:-{\}}" >>"$results" 2>>"$log"
}
note() {
    printf '{"name": "%s", "result": "%s", "seconds": %d}\n' "$1" "$2" "$3" | record step
    echo "[$(($(date +%s) - began)) s] $1: $2"
}
# step NAME NEEDS CAP COMMAND..: not begun with less than NEEDS seconds left, stopped after CAP. Output: $work/output.
step() {
    local name=$1 needs=$2 cap=$3 from rc have
    shift 3
    have=$(left)
    if [ "$have" -lt "$needs" ]; then
        note "$name" "skipped: no time left" 0
        : >"$work/output"
        return 1
    fi
    [ "$have" -lt "$cap" ] && cap=$have
    from=$(date +%s)
    echo "== $name" >>"$log"
    timeout -k 5 "$cap" "$@" >"$work/output" 2>>"$log" </dev/null
    rc=$?
    case $rc in
    0) note "$name" ok $(($(date +%s) - from)) ;;
    124 | 137) note "$name" "stopped at its limit" $(($(date +%s) - from)) ;;
    *) note "$name" "failed ($rc)" $(($(date +%s) - from)) ;;
    esac
    return $rc
}

# What diagnose said so far -> log.
keep_errors() { [ -e "$work/errors.txt" ] && cat "$work/errors.txt" >>"$log" && : >"$work/errors.txt"; }

unpack() {
    case $1 in
    *.gz | *.xz) python3 -c '
import gzip, lzma, shutil, sys
opened = (lzma if sys.argv[1].endswith("xz") else gzip).open(sys.argv[1])
shutil.copyfileobj(opened, open(sys.argv[2], "wb"), 2**20)' "$1" "$2" ;;
    *.zst) if command -v zstd >/dev/null; then zstd -dqf "$1" -o "$2"; else python3 -c '
import pyarrow, shutil, sys
shutil.copyfileobj(pyarrow.input_stream(sys.argv[1], compression="zstd"), open(sys.argv[2], "wb"), 2**20)' "$1" "$2"; fi ;;
    *) cp "$1" "$2" ;;
    esac && chmod +x "$2"
}

# CUDA's libraries as PyTorch's wheels bring them, then the toolkit's; for our programs only.
libraries=$(python3 -c '
import glob, importlib.util
spec = importlib.util.find_spec("nvidia")
folders = [f for at in (spec.submodule_search_locations if spec else []) for f in sorted(glob.glob(at + "/*/lib"))]
print(":".join(folders + glob.glob("/usr/local/cuda/lib64")))' 2>>"$log")
with_libraries() { env LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libraries" "$@"; }
export libraries
# For `timeout`, which cannot call a function.
cat >"$work/with_libraries" <<'END'
#!/bin/sh
LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libraries" exec "$@"
END
chmod +x "$work/with_libraries"
own="$work/with_libraries"

card=$(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader 2>>"$log" | head -1)
python3 - "$card" >"$work/output" 2>>"$log" <<'END'
import json, os, sys
about = {"card:": sys.argv[1] or "none", "processors:": os.cpu_count()}
try:
    about["processor:"] = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
except (OSError, StopIteration):
    pass
print(json.dumps(about))
END
record card <"$work/output"
echo "card: ${card:-none}"

unpack "$binary" "$work/diagnose" 2>>"$log" || note "unpack $(basename "$binary")" failed 0
if [ "$tests" != - ]; then unpack "$tests" "$work/unit_tests" 2>>"$log" || note "unpack $(basename "$tests")" failed 0; fi
with_libraries "$work/diagnose" --version >"$work/output" 2>&1 && note "$(head -1 "$work/output")" starts 0 ||
    note "diagnose does not start" "$(tr -d '"\\' <"$work/output" | tail -1)" 0

# (b) Models, while the tests run: neither is timed.
arguments=(--layers-8b "$layers" --models $models) answers=(--tokens 128)
[ "$size" = tiny ] && arguments+=(--tiny --rows-512 6 --rows-4096 2 --parity-longest 500) && answers=(--tokens 6)
if has "$steps" parity || has "$steps" alike || has "$steps" speed || has "$steps" written || has "$steps" profile; then
    (
        timeout -k 5 150 python3 "$here/make_models.py" "$work/models" "${arguments[@]}" >"$work/models.txt" 2>&1
        echo $? >"$work/models.rc"
    ) &
    making=$!
fi

# What binaries that were built elsewhere look for where they were built.
linked() { if [ -n "$1" ] && [ ! -e "$1" ]; then mkdir -p "$(dirname "$1")" && ln -s "$2" "$1"; fi; }
linked "${BUILT_AT:-}" "$root"
linked "${EXE_AT:-}" "$work/diagnose"

# (a) Device tests.
if has "$steps" tests && [ -x "$work/unit_tests" ]; then
    cd "$root" || exit 1
    step "device tests" 5 90 "$own" env DIAGNOSE_DEVICE_TESTS=1 RUST_BACKTRACE=0 sh -c '"$0" $1 2>&1' "$work/unit_tests" "$filter"
    cp "$work/output" "$out/tests.txt"
    python3 - "$out/tests.txt" <<'END' | record tests
import json, re, sys
text = open(sys.argv[1], errors="replace").read()
line = [line for line in text.splitlines() if line.startswith("test result")] or ["no result: see tests.txt"]
print(json.dumps({"line": line[-1], "failed": re.findall(r"^test (\S+) \.\.\. FAILED", text, re.M)}))
END
fi

if has "$steps" tests && [ -n "${INTEGRATION:-}" ]; then
    unpack "$INTEGRATION" "$work/integration" 2>>"$log" || note "unpack $(basename "$INTEGRATION")" failed 0
    step "families on the device" 5 90 "$own" env DIAGNOSE_DEVICE_TESTS=1 RUST_BACKTRACE=0 sh -c '"$0" families engine::a_shared generate:: on_a_gpu 2>&1' "$work/integration"
    cat "$work/output" >>"$out/tests.txt"
fi

if [ -n "${making:-}" ]; then
    wait "$making"
    cat "$work/models.txt" >>"$log"
    [ "$(cat "$work/models.rc")" = 0 ] && note "make the models" "$(tail -1 "$work/models.txt")" 0 || note "make the models" failed 0
fi
rows=$work/models
made() { [ -e "$rows/$1/tokenizer_config.json" ]; }

# compared NAME OURS THEIRS [LIMITS..]
compared() {
    local name=$1
    shift
    [ -e "$1" ] && [ -e "$2" ] || return 0
    python3 "$here/compare.py" "$@" 2>>"$log" | record parity "{\"name\": \"$name\"}"
}
# ours NAME NEEDS CAP KIND ARGUMENTS..
ours() {
    local name=$1 needs=$2 cap=$3 kind=$4
    shift 4
    step "$name" "$needs" $((cap + 10)) "$own" python3 "$here/ours.py" "$work/diagnose" "$@" --timeout "$cap" --errors "$work/errors.txt"
    local rc=$?
    record "$kind" <"$work/output"
    return $rc
}

# (c) Parity with the same binary's f32 on the CPU. The largest shape would take too long there: see the end.
if has "$steps" parity; then
    for model in $models; do
        [ $model != 8b ] && made $model || continue
        at=$work/parity-$model
        ours "$model on the CPU, f32" 5 60 parity-run "$rows/$model" "$rows/rows-parity.jsonl" --device cpu --dtype f32 --out "$at-cpu"
        for dtype in f32 bf16; do
            ours "$model on the device, $dtype" 5 40 parity-run "$rows/$model" "$rows/rows-parity.jsonl" \
                --device "$device" --dtype $dtype --out "$at-$dtype"
            [ $dtype = f32 ] && limit="--max-logprob 1e-4" || limit="--mean-logprob 0.05"
            compared "$model $dtype, against f32 on the CPU" "$at-$dtype/tokens.parquet" "$at-cpu/tokens.parquet" $limit
        done
    done
fi

# Answers one at a time and 64 at a time have the same bits. So do, by a test of (a), the rows of products wherever they stand in a tile.
if has "$steps" alike; then
    for model in $models; do
        made $model || continue
        step "answers of $model, alone and together" 10 60 "$own" python3 "$here/written.py" alike "$work/diagnose" "$rows/$model" \
            "$rows/rows-512.jsonl" "${answers[@]}" --words 200 --device "$device" --out "$work/alike" --errors "$work/errors.txt"
        record alike <"$work/output"
    done
fi

# Races and access out of bounds, where NVIDIA's tool is, in the tests of the kernels that were written last.
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>>"$log")
if has "$steps" sanitizer && [ -x "$work/unit_tests" ]; then
    if [ -z "$sanitizer" ]; then note "compute-sanitizer" "skipped: it is not on this machine" 0; fi
    for tool in ${sanitizer:+racecheck memcheck}; do
        step "compute-sanitizer $tool" 10 40 "$own" env DIAGNOSE_DEVICE_TESTS=1 RUST_BACKTRACE=0 sh -c '"$@" 2>&1' - "$sanitizer" --tool $tool \
            --error-exitcode 9 "$work/unit_tests" --test-threads 1 kernels::cuda::pages kernels::cuda::tests::experts of_experts what_experts \
            delta:: the_largest statistics_of
        { echo "== $tool" && cat "$work/output"; } >>"$out/sanitizer.txt"
    done
fi

# (d) Speed: rows of 512 and of 4,096 tokens.
declare -A few=([135m]=1024 [0.6b]=256 [8b]=256 [30b-a3b]=256 [3.5-4b]=256) many=([135m]=128 [0.6b]=32 [8b]=32 [30b-a3b]=32 [3.5-4b]=32)
speed_of_ours() {
    for model in $models; do
        made "$model" || continue
        ours "$model, 512, run $1" "$2" 45 ours "$rows/$model" "$rows/rows-512.jsonl:${few[$model]}" --device "$device" --out "$work/run"
        ours "$model, 4096, run $1" "$2" 45 ours "$rows/$model" "$rows/rows-4096.jsonl:${many[$model]}" --device "$device" --out "$work/run"
    done
}
if has "$steps" speed; then
    speed_of_ours 1 8
    # (e) The shares need it, and it is short.
    step products 8 40 python3 "$here/products.py" && record products <"$work/output"
fi

# Answers: tokens/s of 1, 16 and 64 at once; and of long prompts, which are answered with one.
if has "$steps" written; then
    for model in $models; do
        [ $model != 0.6b ] && made "$model" || continue
        step "answers of $model" 10 40 "$own" python3 "$here/written.py" ours "$work/diagnose" "$rows/$model" "$rows/rows-512.jsonl" \
            "${answers[@]}" --device "$device" --out "$work/written" --errors "$work/errors.txt"
        record written <"$work/output"
        step "prompts of $model" 10 40 "$own" python3 "$here/written.py" ours "$work/diagnose" "$rows/$model" "$rows/rows-512.jsonl" \
            --words 300 --tokens 1 --at-once 64 --device "$device" --out "$work/written" --errors "$work/errors.txt"
        record prompts <"$work/output"
    done
fi

# (f) Profiles by kernel.
if has "$steps" profile; then
    for model in $models; do
        made "$model" || continue
        for file in "rows-512.jsonl:${few[$model]}" "rows-4096.jsonl:${many[$model]}"; do
            keep_errors
            DIAGNOSE_CUDA_PROFILE=1 ours "profile of $model, ${file%.jsonl*}" 10 45 profile-run "$rows/$model" "$rows/$file" \
                --device "$device" --out "$work/run"
            cat "$work/errors.txt" >>"$out/profile.txt"
            : >"$work/errors.txt"
        done
        DIAGNOSE_CUDA_PROFILE=1 step "profile of answers of $model" 10 45 "$own" python3 "$here/written.py" ours "$work/diagnose" \
            "$rows/$model" "$rows/rows-512.jsonl" --at-once 64 "${answers[@]}" --device "$device" --out "$work/written" --errors "$work/errors.txt"
        cat "$work/errors.txt" >>"$out/profile.txt"
        : >"$work/errors.txt"
    done
fi

# The peers, which take longest, behind all of ours.
for model in $models; do
    made "$model" || continue
    if has "$steps" speed; then
        step "Transformers, $model" 20 75 python3 "$here/peer.py" "$rows/$model" "$rows/rows-parity.jsonl" \
            "$rows/rows-512.jsonl:${few[$model]}" "$rows/rows-4096.jsonl:${many[$model]}" --dtype bf16 --batch-tokens 16384 65536 \
            --out "$work/parity-$model-peer.parquet"
        # Also what it measured before it was stopped.
        record peer <"$work/output"
        compared "Transformers $model bf16, against f32 on the CPU" \
            "$work/parity-$model-peer.parquet" "$work/parity-$model-cpu/tokens.parquet"
    fi
    if has "$steps" written && [ $model != 0.6b ]; then
        step "answers of Transformers, $model" 15 40 python3 "$here/written.py" peer "$rows/$model" "$rows/rows-512.jsonl" "${answers[@]}" \
            --device "$device"
        record written <"$work/output"
    fi
done

# The largest shape against Transformers in f32 on the card: the CPU would take too long.
if has "$steps" parity && has "$models" 8b && made 8b; then
    at=$work/parity-8b
    for dtype in f32 bf16; do
        ours "8b on the device, $dtype" 40 40 parity-run "$rows/8b" "$rows/rows-parity.jsonl" \
            --device "$device" --dtype $dtype --out "$at-$dtype"
    done
    if step "Transformers, 8b, f32" 20 60 python3 "$here/peer.py" "$rows/8b" "$rows/rows-parity.jsonl" --dtype f32 \
        --batch-tokens 8192 --out "$at-f32.parquet"; then
        compared "8b f32, against Transformers f32" "$at-f32/tokens.parquet" "$at-f32.parquet" --max-logprob 2e-4
        compared "8b bf16, against Transformers f32" "$at-bf16/tokens.parquet" "$at-f32.parquet" --mean-logprob 0.05
        compared "Transformers 8b bf16, against its f32" "$at-peer.parquet" "$at-f32.parquet"
    fi
fi

# Medians, while time is left.
if has "$steps" speed; then
    for ((i = 2; i <= repeats; i++)); do speed_of_ours $i 15; done
fi

keep_errors
note "all steps" "$(($(date +%s) - began)) of $seconds s" $(($(date +%s) - began))
# What comes back is small.
for file in "$log" "$out/tests.txt" "$out/sanitizer.txt" "$out/profile.txt"; do
    [ -e "$file" ] && [ "$(stat -c %s "$file")" -gt 4000000 ] && { tail -c 4000000 "$file" >"$work/tail" && cp "$work/tail" "$file"; }
done
echo
python3 "$here/table.py" "$results" "$rows/models.json" 2>>"$log" | tee "$out/table.md"
