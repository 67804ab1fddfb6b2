"""Asking a server for features through its API, from a server that is begun and ended."""

from __future__ import annotations

from pathlib import Path

import torch
from awkward_models import Archive
from fastapi.testclient import TestClient

from hapi.data import TransformSpec
from hapi.errors import StoreUnavailableError
from hapi.wire import read_stream
from storage_server.http.app import app_of
from storage_server.service import Service

GOOD = list(range(12))


def features(
    service: Service, photos: Path, archive: Archive, transform: TransformSpec, cuts: list[str]
) -> list[torch.Tensor]:
    """Per cut, those of the good photos, in order, of a server that is begun and ended."""
    outcome = []
    with TestClient(app_of(service)) as client:
        dataset = client.post("/v1/datasets", json={"uri": str(photos)}).json()["digest"]
        client.put(f"/v1/models/{archive.digest}", content=archive.path.read_bytes())
        body = {"dataset": dataset, "indices": GOOD, "model": archive.digest, "transform": transform.to_json()}
        for cut in cuts:
            answer = client.post("/v1/extract", json={**body, "cut": cut})
            found = {}
            for batch in read_stream([answer.content]):
                assert not batch.errors
                found |= {int(index): batch.tensors[0][row] for row, index in enumerate(batch.indices)}
            outcome.append(torch.stack([found[index] for index in GOOD]))
    return outcome


def refuse(*_: object) -> bytes:
    """Takes the place of reading: nothing is to be read."""
    raise StoreUnavailableError("nothing is to be read.")
