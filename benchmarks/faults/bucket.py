"""Objects of a bucket that are lost, damaged and brought back: `python -m benchmarks.faults.bucket URI`.

It runs on the storage host, with the variables that lead to the store, and takes JSON lines: `{"do": "lose", "key": K}`
deletes, `damage` puts bytes there that are no picture, `restore` puts a `file` there. Each is answered by a line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.baselines.objects import make_client

DAMAGED = b"this was a photograph"


def change(client: Any, uri: str, told: dict[str, str]) -> None:
    """One object."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    where = {"Bucket": bucket, "Key": f"{prefix}/{told['key']}".lstrip("/")}
    if told["do"] == "lose":
        client.delete_object(**where)
    else:
        client.put_object(**where, Body=DAMAGED if told["do"] == "damage" else Path(told["file"]).read_bytes())


def main() -> None:
    """Changes objects until its standard input ends."""
    client = make_client()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            change(client, sys.argv[1], json.loads(line))
        except Exception as error:  # whatever the store says is for who asked
            print(json.dumps({"error": {"message": f"{type(error).__name__}: {error}"}}), flush=True)
        else:
            print(json.dumps({"done": True}), flush=True)


if __name__ == "__main__":
    main()
