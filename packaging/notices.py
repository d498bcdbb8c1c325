#!/usr/bin/env python3
"""Prints the licences of what is built into the program: THIRD-PARTY-NOTICES.txt, which every wheel and archive holds (tests/release.sh).

The crates are those that Cargo links for this machine's system; their texts are the files that they bring along, those of C sources within them
included. Where a crate may be had under MIT, that is chosen. packaging/licences has the texts of what comes from elsewhere.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent
LICENCE = re.compile(r"(licen[cs]e|unlicense|copying|copyright|notice)([-._].*)?", re.IGNORECASE)
SOURCE = {".c", ".h", ".rs", ".py"}


def linked():
    """All packages of the program but itself, by what Cargo resolves without those for tests and for building."""
    host = re.search(r"host: (\S+)", subprocess.check_output(["rustc", "-vV"], text=True))[1]
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", host]
    found = json.loads(subprocess.check_output(command, cwd=HOME.parent))
    packages = {package["id"]: package for package in found["packages"]}
    nodes = {node["id"]: node for node in found["resolve"]["nodes"]}
    seen, ahead = set(), [found["resolve"]["root"]]
    while ahead:
        node = nodes[ahead.pop()]
        if node["id"] not in seen:
            seen.add(node["id"])
            ahead += [dep["pkg"] for dep in node["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"])]
    own = packages[found["resolve"]["root"]]["name"]
    return sorted((packages[key] for key in seen if packages[key]["name"] != own), key=lambda package: (package["name"], package["version"]))


def texts(package):
    folder = Path(package["manifest_path"]).parent
    files = sorted(path for path in folder.rglob("*") if path.is_file() and LICENCE.fullmatch(path.name) and path.suffix not in SOURCE)
    own = [path for path in files if path.parent == folder]
    of_mit = [path for path in own if "MIT" in path.name.upper()]
    if of_mit and re.search(r"\bMIT\b", package["license"] or "") and " AND " not in package["license"]:
        files = of_mit + [path for path in files if path.parent != folder]
    read = [path.read_text(encoding="utf-8", errors="replace").strip() for path in files]
    # zstd may be had under the GPL instead; deny.toml allows nothing that must be.
    return [text for text in dict.fromkeys(read) if "GNU GENERAL PUBLIC LICENSE" not in text[:200]]


def main():
    packages = linked()
    if not packages:
        sys.exit("cargo metadata names no crate")
    found = {package["id"]: texts(package) for package in packages}
    # Some crates of a repository leave the text to their neighbours.
    repository = lambda package: (package["repository"] or package["id"]).rstrip("/")
    of_repository = {repository(package): found[package["id"]] for package in packages if found[package["id"]]}
    users = {}
    for package in packages:
        name = f"{package['name']} {package['version']} ({package['license'] or 'see below'})"
        without = [f"Its package has no text of its own. Authors: {', '.join(package['authors']) or 'see its repository'}; {package['repository']}"]
        for text in found[package["id"]] or of_repository.get(repository(package), without):
            users.setdefault(text, []).append(name)
    sections = [(names, text) for text, names in users.items()]
    sections += [([path.stem], path.read_text(encoding="utf-8").strip()) for path in sorted((HOME / "licences").iterdir())]
    out = open(sys.stdout.fileno(), "w", encoding="utf-8", closefd=False)
    print("The program `diagnose` is licensed under MIT or Apache-2.0, at your choice. Built into it are these works of others:", file=out)
    for names, text in sections:
        print("", "=" * 80, *names, "-" * 80, text, sep="\n", file=out)


main()
