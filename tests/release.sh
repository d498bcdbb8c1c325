#!/usr/bin/env bash
# Every step of a release that needs no account, each by itself as .github/workflows/release.yml calls it, or all of them:
#
#   tests/release.sh                         licences, wheel, sdist, an empty environment that installs the wheel, old processors, archive, crate
#   tests/release.sh aarch64                 the program for 64-bit Arm, built and run under qemu (needs gcc-aarch64-linux-gnu and qemu-user)
#   tests/release.sh licences                those of what is built in: THIRD-PARTY-NOTICES.txt, which wheels and archives hold
#   tests/release.sh archive FOLDER OUT NAME the program in FOLDER with manual pages, completions and licences as OUT/NAME.tar.gz
#   tests/release.sh version VERSION         is it the version of Cargo.toml, with its lines in CHANGELOG.md?
#   tests/release.sh notes VERSION           its lines in CHANGELOG.md
set -euo pipefail
cd "$(dirname "$0")/.."

notices=THIRD-PARTY-NOTICES.txt
version() { sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml; }

notes() { awk -v version="$1" '/^## / { on = $2 == version; next } on' CHANGELOG.md; }

licences() {
  python3 packaging/notices.py > "$notices"
  # Cargo says in another way what is linked: all of it must be named.
  local crate
  while read -r crate; do
    grep -qF "$crate (" "$notices" || { echo "$notices lacks $crate" >&2; return 1; }
  done < <(cargo tree --locked --edges normal,no-proc-macro --prefix none --format '{p}' | sed -E 's/^(\S+) v(\S+).*/\1 \2/' | sort -u | grep -v '^diagnose ')
  ls -l "$notices"
}

archive() {
  local program=$1/diagnose out=$2 name=$3 folder
  [ -x "$program" ] || program=$1/diagnose.exe
  folder=$(mktemp -d)
  mkdir -p "$folder/$name/man" "$folder/$name/completions" "$out"
  cp "$program" README.md CHANGELOG.md LICENSE-* "$notices" "$folder/$name/"
  "$program" man "$folder/$name/man"
  for shell in bash zsh fish powershell; do "$program" completions "$shell" > "$folder/$name/completions/diagnose.$shell"; done
  tar -C "$folder" -czf "$out/$name.tar.gz" "$name"
  rm -r "$folder"
  ls -l "$out/$name.tar.gz"
}

# The wheel for an old Linux by zig's linker, and what a user does with it: no Rust, no compiler, an empty environment.
wheel() {
  python3 -m venv "$work/tools"
  "$work/tools/bin/pip" install -q 'maturin[zig]>=1.9,<2'
  PATH="$work/tools/bin:$PATH" maturin build --release --locked --zig --compatibility manylinux_2_17 --out "$work/dist"
  PATH="$work/tools/bin:$PATH" maturin sdist --out "$work/dist"
  ls -l "$work/dist"
}

install() {
  python3 -m venv "$work/user"
  "$work/user/bin/pip" install -q "$work"/dist/*.whl polars
  test -s "$work"/user/lib/python3*/site-packages/diagnose_sft-*.dist-info/licenses/"$notices"
  local bin=$work/user/bin
  # An empty PATH but for the environment and what every system has: no cargo, no cc.
  mkdir -p "$work/empty"
  (cd "$work/empty" && cp "$OLDPWD/data/demo.jsonl" data.jsonl && env -i HOME="$HOME" PATH="$bin:/usr/bin:/bin" diagnose data.jsonl --limit 10 > said)
  tail -n 5 "$work/empty/said"
  env -i HOME="$HOME" PATH="$bin:/usr/bin:/bin" "$bin/python" -c "
import diagnose_sft
run = diagnose_sft.run('data/demo.jsonl', limit=10, out='$work/runs/wheel', quiet=True)
print(run, run.tokens.shape, run.summary['overall']['tokens'])"
  # The oldest kernels and the best give the same quadrants: the wheel serves every x86-64.
  env DIAGNOSE_KERNELS=portable "$bin/diagnose" data/demo.jsonl --limit 5 --out "$work/runs/portable" > /dev/null
  du -h "$work"/dist/*
}

# One wheel serves every x86-64. An emulated processor of 2006 (SSE3 at most) runs the program, and gives the bits of the portable kernels here.
old_processors() {
  command -v qemu-x86_64 > /dev/null || { echo "qemu-user is missing: old processors are left out"; return; }
  local program=$work/user/bin/diagnose
  DIAGNOSE_KERNELS=portable "$program" data/demo.jsonl --limit 2 --out "$work/runs/here" > /dev/null
  qemu-x86_64 -cpu core2duo "$program" data/demo.jsonl --limit 2 --out "$work/runs/old" > /dev/null
  "$work/user/bin/python" -c "
import polars
old, here = (polars.read_parquet(f'$work/runs/{run}/tokens.parquet') for run in ('old', 'here'))
assert old.equals(here) and len(old) > 40, 'the old processor has other numbers'
print('core2duo:', len(old), 'tokens, equal to the bit')"
  for cpu in core2duo Haswell; do echo "$cpu: $(qemu-x86_64 -cpu "$cpu" "$program" --version 2> /dev/null)"; done
}

aarch64() {
  rustup target add aarch64-unknown-linux-gnu
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
  cargo build --release --locked --target aarch64-unknown-linux-gnu
  local program=${CARGO_TARGET_DIR:-target}/aarch64-unknown-linux-gnu/release/diagnose out
  out=$(mktemp -d)
  qemu-aarch64 -L /usr/aarch64-linux-gnu "$program" --version
  qemu-aarch64 -L /usr/aarch64-linux-gnu "$program" data/demo.jsonl --limit 2 --out "$out/run"
  rm -r "$out"
}

# crates.io refuses what is larger than 10 MB, which a dry run does not see.
crate() {
  local packed
  cargo publish --dry-run --locked --allow-dirty --no-verify
  packed=${CARGO_TARGET_DIR:-target}/package/diagnose-$(version).crate
  ls -l "$packed"
  [ "$(wc -c < "$packed")" -lt 10485760 ] || { echo "the crate is larger than crates.io takes: see exclude in Cargo.toml" >&2; return 1; }
}

case ${1:-all} in
  licences) licences ;;
  archive) archive "$2" "$3" "$4" ;;
  version) [ "$(version)" = "$2" ] && [ -n "$(notes "$2")" ] || { echo "Cargo.toml has $(version), and CHANGELOG.md needs '## $2' with its lines" >&2; exit 1; } ;;
  notes) notes "$2" ;;
  aarch64) aarch64 ;;
  all)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    licences
    wheel
    install
    old_processors
    archive "$(ls -d target/*-linux-gnu/release 2>/dev/null | head -1)" "$work/dist" "diagnose-$(version)-linux"
    crate
    ;;
  *) sed -n '2,10p' "$0"; exit 2 ;;
esac
