"""The rooms of the code base: who may import whom, what no file may use, and doors that say what they offer."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "hapi": (),
    "profiler": ("hapi",),
    "storage_server": ("hapi", "profiler"),
    "compute_client": ("hapi", "profiler"),
    "benchmarks": ("hapi", "profiler", "storage_server", "compute_client"),
}
"""Arrows point down only; the server and the client meet in the HTTP API alone."""
HTTP = {"fastapi", "starlette", "uvicorn", "httpx"}
HTTP_HOMES = ("storage_server/http/", "profiler/remote/", "benchmarks/")
"""Where HTTP is spoken; whatever else the tiers do is a library."""
EXECUTES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
HARMLESS = {"pickle.UnpicklingError"}
LOADERS = {"torch.load", "torch.export.load", "torch.jit.load", "torch.hub.load", "numpy.load", "np.load"}
"""What runs, or may run, what stands in the data that it reads."""

FILES = [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]
DOORS = [path for path in FILES if path.name == "__init__.py" and path.parent.name != "commands"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(tree: ast.AST) -> Iterator[str]:
    """Every name that is imported anywhere in a file, inside of functions and for type checkers included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top(names: Iterator[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def dotted(node: ast.expr) -> str:
    """`torch.load` for the expression of that name; nothing for other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def test_every_room_is_looked_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(MAY_IMPORT)
    assert len(FILES) > 100


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_only_those_below(path: Path) -> None:
    room, tree = path.relative_to(ROOT).parts[0], parse(path)
    if name_of(path) == "hapi/__init__.py":  # it names for type checkers what it finds in other rooms when asked
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and dotted(node.test) == "TYPE_CHECKING")
        ]
    assert top(imports(tree)) & set(MAY_IMPORT) <= {room, *MAY_IMPORT[room]}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_http_is_spoken_in_few_places(path: Path) -> None:
    if not name_of(path).startswith(HTTP_HOMES):
        assert not top(imports(parse(path))) & HTTP


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_runs_what_it_reads(path: Path) -> None:
    tree = parse(path)
    imported = set(imports(tree)) - HARMLESS
    called = {dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not top(iter(imported)) & EXECUTES
    assert not (imported | called) & {*LOADERS, "eval", "exec"}


@pytest.mark.parametrize("path", DOORS, ids=name_of)
def test_a_door_lists_what_it_offers(path: Path) -> None:
    """Sorted as ruff sorts: constants, classes, then the rest."""
    package, tree = ".".join(path.relative_to(ROOT).parent.parts), parse(path)
    lists = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and dotted(node.targets[0]) == "__all__"
    ]
    assert lists or not any(name.startswith(package) for name in imports(tree))
    for names in lists:
        assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
