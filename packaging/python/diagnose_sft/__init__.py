"""The program `diagnose` from Python: run it, and read its results as data frames.

    import diagnose_sft

    run = diagnose_sft.run("data.jsonl", model="model-folder", sample=200)
    run.tokens          # a polars frame, or a pandas one where polars is missing: one row per supervised token
    run.rows            # one row per example
    run.summary         # summary.json as a dict
    run.show()          # in a notebook: the figures and the report

The module has no dependency of its own. It starts the program that the same wheel installed, and reads its run folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Iterable, Optional, Union

__all__ = ["Run", "program", "run"]

PathLike = Union[str, "os.PathLike[str]"]


def program() -> str:
    """Path of the program: the one installed by this wheel, otherwise the one on PATH."""
    name = "diagnose.exe" if os.name == "nt" else "diagnose"
    schemes = [sysconfig.get_default_scheme(), *(name for name in sysconfig.get_scheme_names() if name.endswith("_user"))]
    for scheme in schemes:
        path = Path(sysconfig.get_path("scripts", scheme)) / name
        if path.is_file():
            return str(path)
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError("the program `diagnose` is neither beside this Python nor on PATH: pip install diagnose-sft")
    return found


def run(data: Union[PathLike, Iterable[PathLike]], *, quiet: bool = False, **options: Any) -> "Union[Run, Path]":
    """Scores a data set and returns its run, or, if no run is made, the output folder.

    `data` is a file, a folder, a glob, or several of them; or a finished run, or several to compare, which returns the folder with
    the figures; `emit="vllm-offline"` returns the folder with the program to run where vLLM is installed. `options` are those of the command line with
    underscores: `model="..."`, `out="..."`, `max_len=2048`, `sample=200`, `dtype="bf16"`; `True` is a switch, a list repeats the option, a dict
    repeats it as KEY=VALUE (`map={"prompt": "question"}`) or is its JSON (`chat_template_kwargs`), `None` leaves it out.
    `quiet` hides the progress. An interrupted run resumes, and a finished one is only read again.

    Raises `subprocess.CalledProcessError`, with the program's own message as its `stderr`, if it fails.
    """
    inputs = [data] if isinstance(data, (str, os.PathLike)) else list(data)
    # Its output is always asked for as JSON.
    options.pop("json", None)
    for name in _OF_A_TERMINAL.intersection(options):
        raise TypeError(f"`{name}` scores nothing: type `diagnose --{name}` in a terminal")
    command = [program()]
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        for each in _values(name, value):
            # In one word, so that a value may begin with a dash.
            command.append(option if each is True else f"{option}={os.fspath(each) if isinstance(each, os.PathLike) else each}")
    # Last, behind a mark: a folder called `train` is data here, and no command.
    command += ["--json", "--", *map(os.fspath, inputs)]
    # Into a file: a pipe that nobody empties would stop the program while this reads what it says on its way.
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.PIPE, encoding="utf-8", errors="replace")
        assert process.stderr is not None
        said = []

        def tell() -> None:
            for line in process.stderr:
                said.append(line)
                if not quiet:
                    print(line, end="", file=sys.stderr)

        try:
            tell()
            status = process.wait()
        except BaseException:
            # An interrupted cell interrupts the program, which keeps what it has and says how to go on.
            process.terminate()
            try:
                tell()
                process.wait()
            except BaseException:
                process.kill()
                raise
            raise
        printed.seek(0)
        out = printed.read().decode("utf-8", errors="replace")
    if status != 0:
        raise subprocess.CalledProcessError(status, command, out, "".join(said))
    folder = Path(json.loads(out)["out"])
    return Run(folder) if (folder / _RECORD).is_file() else folder


# What makes a folder a finished run.
_RECORD = "run.json"

# Options that print something for people in place of a result.
_OF_A_TERMINAL = {"help", "version"}


def _values(name: str, value: Any) -> list[Any]:
    """What an option is given, one after the other; `True` for a switch."""
    if isinstance(value, dict):
        if name == "chat_template_kwargs":
            return [json.dumps(value, ensure_ascii=False)]
        return [f"{key}={each}" for key, each in value.items()]
    if isinstance(value, (list, tuple)):
        return [each for item in value for each in _values(name, item)]
    return [] if value is None or value is False else [value]


class Run:
    """A finished run folder, read on demand."""

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        if not (self.folder / _RECORD).is_file():
            raise FileNotFoundError(f"{self.folder} holds no finished run (no {_RECORD})")

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def tokens(self) -> Any:
        """One row per supervised token: logprob, entropy, rank, quadrant and so on. A polars frame if polars is installed, otherwise pandas."""
        return _frame(self.folder / "tokens.parquet")

    @property
    def rows(self) -> Any:
        """One row per example, with the reason if it was skipped."""
        return _frame(self.folder / "rows.parquet")

    @property
    def summary(self) -> dict[str, Any]:
        """Quadrant shares, sources, turns and the gate preview: summary.json."""
        return self._json("summary.json")

    @property
    def record(self) -> dict[str, Any]:
        """How the run was made: run.json."""
        return self._json(_RECORD)

    @property
    def figures(self) -> list[Path]:
        """The figures as PNG files."""
        return sorted((self.folder / "maps").glob("*.png"))

    @property
    def report(self) -> str:
        """The findings in words: report.md."""
        return (self.folder / "report.md").read_text(encoding="utf-8")

    def show(self, view: bool = True) -> None:
        """Shows the figures in a notebook, and the run's page if it has one."""
        from IPython.display import IFrame, Image, display

        for figure in self.figures:
            display(Image(filename=str(figure)))
        page = self.folder / "view.html"
        if view and page.is_file():
            display(IFrame(_address(page), width="100%", height=700))

    def _json(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


def _address(page: Path) -> str:
    """As a notebook's page can load it: by a path below the notebook where there is one."""
    try:
        return page.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return page.resolve().as_uri()


def _frame(path: Path) -> Any:
    try:
        import polars
    except ImportError:
        pass
    else:
        return polars.read_parquet(path)
    try:
        import pandas
    except ImportError:
        raise ImportError("the tables need a library of data frames: pip install polars, or pandas and pyarrow") from None
    return pandas.read_parquet(path)
