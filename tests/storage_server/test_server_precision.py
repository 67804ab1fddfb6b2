"""One server computes in the precision that each request names."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from awkward_models import Archive
from fastapi.testclient import TestClient
from test_server_routes import problem, upload

from hapi.data import TransformSpec
from hapi.engine import has_bf16
from hapi.wire import read_stream
from storage_server.http.app import app_of
from storage_server.service import Service

needs_bf16 = pytest.mark.skipif(not has_bf16("cpu"), reason="this processor does not compute in bfloat16")


def features(client: TestClient, body: dict[str, object]) -> torch.Tensor:
    answer = client.post("/v1/extract", json=body)
    assert answer.status_code == 200, answer.text
    batches = sorted(read_stream([answer.content]), key=lambda batch: int(batch.indices[0]))
    order = torch.cat([torch.from_numpy(batch.indices) for batch in batches]).argsort()
    return torch.cat([batch.tensors[0] for batch in batches])[order]


@pytest.fixture(params=["float32", "bf16"])
def own(request: pytest.FixtureRequest) -> str:
    """The server's own precision."""
    if request.param == "bf16" and not has_bf16("cpu"):
        pytest.skip("this processor does not compute in bfloat16")
    return str(request.param)


@pytest.fixture
def asked(make_service: Callable[..., Service], own: str) -> Iterator[tuple[TestClient, Service]]:
    service = make_service(precision=own, engine="eager")
    with TestClient(app_of(service), raise_server_exceptions=False) as client:
        yield client, service


@needs_bf16
def test_each_request_has_its_own(
    asked: tuple[TestClient, Service], own: str, archive: Archive, transform: TransformSpec
) -> None:
    client, service = asked
    assert upload(client, archive).status_code == 201
    dataset = client.post("/v1/datasets", json={"uri": service.roots.uris[0]}).json()["digest"]
    body = {
        "dataset": dataset,
        "indices": list(range(12)),
        "model": archive.digest,
        "transform": transform.to_json(),
    }
    exact, rounded = (features(client, {**body, "precision": name}) for name in ("float32", "bf16"))
    assert exact.dtype == rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
    assert torch.equal(features(client, body), exact if own == "float32" else rounded)
    assert torch.equal(features(client, {**body, "precision": "float32"}), exact)  # kept under a name of its own
    assert client.get("/v1/status").json()["precision"] == own


@needs_bf16
def test_measurements_are_of_the_precision_that_is_asked_for(
    asked: tuple[TestClient, Service], own: str, archive: Archive, transform: TransformSpec
) -> None:
    client, service = asked
    assert upload(client, archive).status_code == 201
    dataset = client.post("/v1/datasets", json={"uri": service.roots.uris[0]}).json()["digest"]
    body = {"model": archive.digest, "dataset": dataset, "transform": transform.to_json(), "samples": 2}
    first = client.post("/v1/profile", json={**body, "precision": own}).json()
    other = "bf16" if own == "float32" else "float32"
    assert not first["details"]["remembered"]
    assert client.post("/v1/profile", json=body).json()["details"]["remembered"]
    assert not client.post("/v1/profile", json={**body, "precision": other}).json()["details"]["remembered"]


def test_a_precision_that_the_device_does_not_have_is_refused(
    client: TestClient, service: Service, archive: Archive, transform: TransformSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upload(client, archive).status_code == 201
    dataset = client.post("/v1/datasets", json={"uri": service.roots.uris[0]}).json()["digest"]
    monkeypatch.setattr("hapi.engine.precision.has_bf16", lambda device: False)
    body = {"dataset": dataset, "indices": [0], "model": archive.digest, "transform": transform.to_json()}
    answer = client.post("/v1/extract", json={**body, "precision": "bf16"})
    assert "precision='float32'" in problem(answer, 422, "bad-input")
    assert client.post("/v1/extract", json={**body, "precision": "float32"}).status_code == 200
    assert client.post("/v1/extract", json={**body, "precision": "int4"}).status_code == 422
