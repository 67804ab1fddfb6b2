"""What the README and that of the benchmarks print is what runs: the example, commands, paths."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.localserver import local_server
from hapi.cli import build_app
from hapi.data import open_store
from hapi.data.transfer import put_pictures

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text()
LINKS = [(folder, link) for folder, text in ((ROOT, README), (ROOT / "benchmarks", BENCHMARKS))
         for link in re.findall(r"\]\(([^)#:]+)\)", text)]  # fmt: skip
EXAMPLE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]


def test_the_example_is_short() -> None:
    code = [line for line in EXAMPLE.splitlines() if line.strip() and not line.lstrip().startswith(("import", "from"))]
    assert len(code) <= 15


def test_the_example_runs_as_printed(tmp_path: Path) -> None:
    put_pictures(open_store(tmp_path / "photos"), 10, classes=5, size=(120, 90))
    with local_server(tmp_path, options=["--threads", "1"]) as server:
        code = EXAMPLE.replace("/data/photos", str(tmp_path / "photos")).replace("http://127.0.0.1:8470", server.url)
        assert code != EXAMPLE
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "plan mix:" in done.stdout
    assert "samples=20" in done.stdout


def test_commands_exist() -> None:
    root = typer.main.get_command(build_app())
    context = typer.Context(root)
    listing = re.findall(r"^hapi (.*)$|    hapi (.*)$", README, re.MULTILINE)
    for line in (first or second for first, second in listing):
        for part in re.split(r"\s{2,}hapi ", line):
            name, *rest = part.split()
            assert name in root.commands
            for verb in rest[0].split("|") if hasattr(root.commands[name], "commands") else []:
                assert verb in root.commands[name].list_commands(context)


@pytest.mark.parametrize(("folder", "link"), LINKS)
def test_links_lead_somewhere(folder: Path, link: str) -> None:
    assert (folder / link).exists()


def test_the_benchmarks_that_are_listed_are_those_there_are() -> None:
    table = BENCHMARKS.partition("| `hapi bench` |")[2].partition("\n\n")[0]
    listed = [name for line in table.splitlines() for name in re.findall(r"`([a-z0-9-]+)`", line.split("|")[1])]
    bench = typer.main.get_command(build_app()).commands["bench"]
    assert sorted(listed) == sorted(bench.list_commands(typer.Context(bench)))


def commands() -> list[list[str]]:
    """The words of every command, in sentences and in the listing, where what is indented belongs to the line above."""
    text = f"{README}\n{BENCHMARKS}"
    fences = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL))
    listed = re.findall(r"^(hapi .*)$", re.sub(r"\n {2,}(?!hapi)", " ", fences), re.MULTILINE)
    said = re.findall(r"`(?:[A-Z_]+=\S+ )?(hapi [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = [part for line in listed for part in re.split(r"\s{2,}(?=hapi )", line)] + said
    return [re.sub(r"[\[\]]", " ", text).split()[1:] for text in found]


def named(command: Any, words: list[str]) -> Iterator[tuple[str, Any]]:
    """(name, command) of each that the words name: `push|list` are two."""
    if words and hasattr(command, "list_commands"):
        for name in words[0].split("|"):
            assert name in command.list_commands(typer.Context(command)), words
            for below, found in named(command.get_command(typer.Context(command), name), words[1:]):
                yield f"{name} {below}", found
    else:
        yield "", command


def test_every_option_that_is_named_exists() -> None:
    root = typer.main.get_command(build_app())
    told = [(name, command, words) for words in commands() for name, command in named(root, words)]
    assert len(told) > 40
    for name, command, words in told:
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, name
