"""Lists of files with labels: read in their order, and wrong lines are named by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hapi.data import build_manifest, open_store
from hapi.errors import ManifestError, ObjectNotFoundError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for key in ("a/1.jpg", "a/2.jpg", "b/3.jpg", "top.jpg", "odd, name.jpg"):
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(key.encode())
    return tmp_path


def listed(root: Path, name: str, content: Any) -> list[tuple[str, int | None]]:
    path = root / name
    if isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    manifest = build_manifest(path)
    assert manifest.uri == root.as_uri()
    assert open_store(manifest.uri).get(manifest.sample(0).key) == manifest.sample(0).key.encode()
    assert manifest.total_bytes == sum(len(manifest.sample(i).key.encode()) for i in range(len(manifest)))
    assert all(manifest.sample(i).version for i in range(len(manifest)))
    return [(manifest.sample(i).key, manifest.sample(i).label) for i in range(len(manifest))]


NAMED = [("b/3.jpg", 1), ("a/2.jpg", 0), ("a/1.jpg", 1)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "path,label\nb/3.jpg,dog\na/2.jpg,cat\na/1.jpg,dog\n"),
        ("l.csv", "\ufefflabel,note,key\r\ndog,x,b/3.jpg\r\n\r\ncat,,a/2.jpg\r\ndog,y,a/1.jpg"),
        ("l.jsonl", '{"path": "b/3.jpg", "label": "dog"}\n\n{"path": "a/2.jpg", "label": "cat", "w": 1}\n'
                    '{"path": "a/1.jpg", "label": "dog"}'),
        ("l.parquet", {"key": ["b/3.jpg", "a/2.jpg", "a/1.jpg"], "n": [1, 2, 3], "label": ["dog", "cat", "dog"]}),
    ],
)  # fmt: skip
def test_names_become_sorted_classes_and_the_order_is_the_lists(root: Path, name: str, content: Any) -> None:
    assert listed(root, name, content) == NAMED
    assert build_manifest(root / name).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "path,label\ntop.jpg,10\na/1.jpg,2\n"),
        ("l.jsonl", '{"path": "top.jpg", "label": 10}\n{"path": "a/1.jpg", "label": 2}'),
        ("l.parquet", {"path": ["top.jpg", "a/1.jpg"], "label": [10, 2]}),
    ],
)
def test_whole_numbers_are_labels_as_they_are(root: Path, name: str, content: Any) -> None:
    assert listed(root, name, content) == [("top.jpg", 10), ("a/1.jpg", 2)]
    assert build_manifest(root / name).classes == tuple(str(number) for number in range(11))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", 'path\n"odd, name.jpg"\ntop.jpg\n'),
        ("l.csv", 'path,label\n"odd, name.jpg",\ntop.jpg,\n'),
        ("l.jsonl", '{"path": "odd, name.jpg"}\n{"path": "top.jpg", "label": null}'),
        ("l.parquet", {"path": ["odd, name.jpg", "top.jpg"]}),
    ],
)
def test_a_list_without_labels(root: Path, name: str, content: Any) -> None:
    assert listed(root, name, content) == [("odd, name.jpg", None), ("top.jpg", None)]


@pytest.mark.parametrize("start", ["{uri}/", "{path}/", "./", "././", "{path}/./"])
def test_paths_may_be_whole_below_the_root_or_begin_with_a_dot(root: Path, start: str) -> None:
    start = start.format(uri=root.as_uri(), path=root)
    assert listed(root, "l.csv", f"path\n{start}a/1.jpg\n") == [("a/1.jpg", None)]


def test_whole_paths_may_have_characters_that_an_address_quotes(root: Path) -> None:
    folder = root / "my 100% photos"
    folder.mkdir()
    (folder / "a b.jpg").write_bytes(b"a b.jpg")
    assert listed(folder, "l.csv", f"path\n{folder}/a b.jpg\n") == [("a b.jpg", None)]


def test_a_list_may_be_named_by_its_key_in_a_store(root: Path) -> None:
    (root / "lists").mkdir()
    (root / "lists" / "l.csv").write_text("path\na/1.jpg\n")
    manifest = build_manifest(open_store(root), "lists/l.csv")
    assert manifest.sample(0).key == "a/1.jpg"
    assert manifest.uri == root.as_uri()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("l.csv", "", r"line 1: no column 'path' \(found: nothing\)"),
        ("l.csv", "file,label\na/1.jpg,x\n", r"line 1: no column 'path' \(found: file, label\)"),
        ("l.csv", "path,label\n", "no samples"),
        ("l.csv", "path,label\na/1.jpg,x\na/2.jpg\n", "line 3: 1 columns, the head has 2"),
        ("l.csv", "path,label\na/1.jpg,x\na/2.jpg,\n", "line 3: no label. Label all samples, or none"),
        ("l.csv", "path,label\na/1.jpg,x\n\nb/3.jpg,x\na/1.jpg,y\n", "line 5: 'a/1.jpg' is listed twice"),
        ("l.csv", "path\na/1.jpg\nnone.jpg\nnada.jpg\n", r"line 3: 'none.jpg' is not in .* \(and 1 more"),
        ("l.csv", "path\n../secret.jpg\n", "line 2: key '../secret.jpg' does not stay below"),
        ("l.csv", "path\n/etc/hostname\n", "line 2: key '/etc/hostname' does not stay below"),
        ("l.csv", "path\na/../top.jpg\n", "line 2: key 'a/../top.jpg' does not stay"),
        ("l.csv", "path\n./../top.jpg\n", "line 2: key '../top.jpg' does not stay"),
        ("l.csv", "path\n.//etc/hostname\n", "line 2: key '/etc/hostname' does not stay"),
        ("l.csv", "path,label\na/1.jpg,x\n./a/1.jpg,y\n", "line 3: 'a/1.jpg' is listed twice"),
        ("l.csv", 'path\n"a/1.jpg\n', "line 2: not CSV"),
        ("l.csv", "path,label\na/1.jpg,-3\nb/3.jpg,1\n", "line 2: label -3 is not the number of a class"),
        ("l.csv", "path,label\na/1.jpg,2\nb/3.jpg,10.0\n", "line 3: label 10.0 is not the number of a class"),
        ("l.csv", "path,label\na/1.jpg,x\nb/3.jpg,1.5\n", None),
        ("l.csv", "path,label\na/1.jpg,1000000\n", "Number the classes from 0"),
        ("l.csv", "path,label\na/1.jpg," + "9" * 500 + "\n", "Number the classes from 0"),
        ("l.csv", b"path\n\xff\xfe.jpg\n", "not UTF-8"),
        ("l.jsonl", '{"path": "a/1.jpg"}\n{"path"', "line 2: not JSON"),
        ("l.jsonl", '["a/1.jpg"]', "line 1: not a JSON object"),
        ("l.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("l.jsonl", '{"path": "a/1.jpg"}\n{"label": 1}', "line 2: no 'path'"),
        ("l.jsonl", '{"path": 3}', "line 1: the path is empty or not text"),
        ("l.jsonl", '{"path": "a/1.jpg", "label": 1.5}', "line 1: label 1.5 is neither"),
        ("l.jsonl", '{"path": "a/1.jpg", "label": true}', "line 1: label True is neither"),
        ("l.jsonl", '{"path": "a/1.jpg", "label": -1}', "line 1: label -1"),
        ("l.jsonl", '{"path": "a/1.jpg", "label": {"x": 1}}', "line 1: label .* is neither"),
        ("l.parquet", b"PAR1 no parquet", "not a readable Parquet file"),
        ("l.parquet", {"file": ["a/1.jpg"]}, r"no column 'path' \(found: file\)"),
        ("l.parquet", {"path": ["a/1.jpg", None]}, "line 2: the path is empty"),
        ("l.parquet", {"path": [1, 2]}, "line 1: the path is empty or not text"),
    ],
)
def test_a_wrong_line_is_named(root: Path, name: str, content: Any, says: str | None) -> None:
    if says is None:  # labels that are not all numbers are names
        assert listed(root, name, content) == [("a/1.jpg", 1), ("b/3.jpg", 0)]
        return
    with pytest.raises(ManifestError, match=says) as caught:
        listed(root, name, content)
    assert name in str(caught.value)


def test_json_lines_do_not_break_at_unicode_line_separators(root: Path) -> None:
    (root / "a\u2028b.jpg").write_bytes("a\u2028b.jpg".encode())
    line = json.dumps({"path": "a\u2028b.jpg"}, ensure_ascii=False)
    assert listed(root, "l.jsonl", line + "\n" + '{"path": "top.jpg"}')[0] == ("a\u2028b.jpg", None)


def test_a_list_that_is_not_there(root: Path) -> None:
    with pytest.raises(ObjectNotFoundError):
        build_manifest(root / "none.csv")
