"""The REST API as a client meets it."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from awkward_models import Archive
from fastapi.testclient import TestClient

from hapi import errors
from hapi.data import Manifest, TransformSpec, build_manifest
from hapi.wire import read_stream
from hapi.wire.protocol import ARROW_STREAM, PROBLEM_JSON, DatasetSummary, ModelInfo, ServerStatus
from profiler import TierProfile
from storage_server.http.app import app_of
from storage_server.http.problems import STATUS, status_of
from storage_server.memory.budget import MemoryBudget
from storage_server.service import Service

ALICE, BOB, METRICS = "alice-secret-0123456789", "bob-secret-0123456789", "metrics-secret-0123456789"
ABSENT = "0" * 64


JSON = {"Content-Type": "application/json"}


def problem(response: Any, status: int, kind: str) -> str:
    """Checks that the answer is a problem of this kind; its sentence."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM_JSON
    body = response.json()
    assert (body["type"], body["status"]) == (kind, status)
    assert body["title"]
    assert body["detail"].endswith((".", ")", "?"))
    return str(body["detail"])


def upload(client: TestClient, archive: Archive, **kwargs: Any) -> Any:
    return client.put(f"/v1/models/{archive.digest}", content=archive.path.read_bytes(), **kwargs)


@pytest.fixture
def dataset(client: TestClient, photos: Path) -> str:
    return str(client.post("/v1/datasets", json={"uri": str(photos)}).json()["digest"])


@pytest.fixture
def request_body(client: TestClient, dataset: str, archive: Archive, transform: TransformSpec) -> dict[str, Any]:
    """A valid extract request."""
    assert upload(client, archive).status_code == 201
    return {
        "dataset": dataset,
        "indices": [0, 3, 12],
        "model": archive.digest,
        "cut": "output",
        "transform": transform.to_json(),
    }


def test_models_come_are_described_and_go(client: TestClient, archive: Archive) -> None:
    path = f"/v1/models/{archive.digest}"
    assert client.head(path).status_code == 404
    assert upload(client, archive).status_code == 201
    assert upload(client, archive).status_code == 200
    assert client.head(path).status_code == 200
    info = ModelInfo.model_validate(client.get(path).json())
    assert info.cuts[-1].shapes == [[5]]
    assert client.get("/v1/models").json() == {"models": [info.model_dump()]}
    assert client.delete(path).status_code == 204
    assert client.get("/v1/models").json() == {"models": []}
    problem(client.get(path), 404, "unknown-model")
    problem(client.delete(path), 404, "unknown-model")


def test_uploads_that_are_refused(client: TestClient, archive: Archive) -> None:
    data = archive.path.read_bytes()
    problem(client.put(f"/v1/models/{ABSENT}", content=data), 409, "digest-mismatch")
    digest = hashlib.sha256(b"x").hexdigest()
    said = problem(client.put(f"/v1/models/{digest}", content=b"x"), 422, "bad-archive")
    assert digest[:12] in said
    assert "/" not in said  # no paths of the server
    problem(client.put(f"/v1/models/{ABSENT}", content=b""), 422, "bad-input")
    said = problem(client.put("/v1/models/..%2f..%2fpasswd", content=b"x"), 404, "bad-input")
    assert "routes" in said
    problem(client.put("/v1/models/" + "A" * 64, content=b"x"), 422, "bad-input")


def test_an_upload_that_is_too_large_is_refused_by_its_length_and_on_its_way(
    make_service: Callable[..., Service], archive: Archive
) -> None:
    with TestClient(app_of(make_service(max_model_bytes=1024))) as client:
        problem(upload(client, archive), 413, "too-large")
        pieces: Iterator[bytes] = iter([b"x" * 512] * 5)
        problem(client.put(f"/v1/models/{ABSENT}", content=pieces), 413, "too-large")


def test_a_dataset_is_registered_and_summarised(client: TestClient, photos: Path) -> None:
    summary = DatasetSummary.model_validate(client.post("/v1/datasets", json={"uri": f"file://{photos}"}).json())
    assert (summary.samples, summary.classes, summary.labelled) == (13, ["a", "b"], True)
    assert summary.bytes == sum(path.stat().st_size for path in photos.rglob("*.*"))


def test_a_manifest_can_be_had_with_its_keys(client: TestClient, photos: Path) -> None:
    summary = client.post("/v1/datasets", json={"uri": str(photos)}).json()
    answer = client.get(f"/v1/datasets/{summary['digest']}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, ARROW_STREAM)
    manifest = Manifest.from_bytes(answer.content)
    assert (manifest.digest, len(manifest)) == (summary["digest"], summary["samples"])
    assert manifest.sample(0).key == build_manifest(photos).sample(0).key
    problem(client.get(f"/v1/datasets/{ABSENT}"), 404, "unknown-dataset")


def test_datasets_that_are_refused(client: TestClient, photos: Path, tmp_path: Path) -> None:
    assert str(photos) in problem(client.post("/v1/datasets", json={"uri": str(tmp_path)}), 403, "forbidden")
    problem(client.post("/v1/datasets", json={"uri": f"{photos}/absent"}), 404, "not-found")
    problem(client.post("/v1/datasets", json={"uri": "http://10.0.0.1/"}), 422, "bad-input")
    assert "uri" in problem(client.post("/v1/datasets", json={}), 422, "bad-input")
    said = problem(client.post("/v1/datasets", json={"uri": "s3://x", "refersh": True}), 422, "bad-input")
    assert "refersh" in said
    problem(client.post("/v1/datasets", content=b"{", headers={"content-type": "application/json"}), 422, "bad-input")


def test_features_are_streamed(client: TestClient, request_body: dict[str, Any]) -> None:
    with client.stream("POST", "/v1/extract", json=request_body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == ARROW_STREAM
        batches = list(read_stream(response.iter_bytes()))
    found = {int(index): batch.errors.get(row) for batch in batches for row, index in enumerate(batch.indices)}
    assert sorted(found) == [0, 3, 12]
    assert [index for index, error in found.items() if error] == [12]


@pytest.mark.parametrize("compression", ["lz4", "zstd", "packed"])
def test_compression_changes_nothing(client: TestClient, request_body: dict[str, Any], compression: str) -> None:
    def features(compression: str) -> dict[int, list[int]]:
        body = {**request_body, "indices": [0, 12], "compression": compression}
        batches = list(read_stream([client.post("/v1/extract", json=body).content]))
        rows = [row for batch in batches for row in batch.tensors[0].view(torch.int32).tolist()]
        return dict(zip([int(index) for batch in batches for index in batch.indices], rows, strict=True))

    found = features(compression)
    assert found == features("none")
    assert found[12] == [0] * 5  # it failed


def test_stored_bytes_need_neither_model_nor_transform(client: TestClient, dataset: str, photos: Path) -> None:
    response = client.post("/v1/extract", json={"dataset": dataset, "indices": [12], "cut": "input"})
    (batch,) = read_stream([response.content])
    assert batch.objects == [(photos / "b" / "broken.jpg").read_bytes()]


@pytest.mark.parametrize(
    ("change", "status", "kind", "said"),
    [
        ({"dataset": ABSENT}, 404, "unknown-dataset", "Register its URI again"),
        ({"model": ABSENT}, 404, "unknown-model", "Upload it first"),
        ({"cut": "layer9"}, 422, "unknown-cut", "has no cut 'layer9'"),
        ({"indices": [13]}, 422, "bad-input", "has 13, numbered from 0"),
        ({"indices": [-1]}, 422, "bad-input", "indices"),
        ({"indices": []}, 422, "bad-input", "indices"),
        ({"indices": [1, 1]}, 422, "bad-input", "names a sample twice"),
        ({"indices": list(range(65_537))}, 422, "bad-input", "indices"),
        ({"transform": [{"name": "Explode", "args": {}}]}, 422, "bad-transform", "Explode"),
        ({"transform": None}, 422, "bad-input", "needs 'model' and 'transform'"),
        ({"codec": "float8"}, 422, "bad-input", "codec"),
        ({"compression": "gzip"}, 422, "bad-input", "compression"),
        ({"seed": -1}, 422, "bad-input", "seed"),
        ({"surprise": 1}, 422, "bad-input", "surprise"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_before_the_stream_begins(
    client: TestClient, request_body: dict[str, Any], change: dict[str, Any], status: int, kind: str, said: str
) -> None:
    assert said in problem(client.post("/v1/extract", json={**request_body, **change}), status, kind)


def test_a_body_over_the_limit_is_not_read(make_service: Callable[..., Service]) -> None:
    with TestClient(app_of(make_service(max_body_bytes=2048))) as client:
        problem(client.post("/v1/extract", content=b" " * 3000), 413, "too-large")
        pieces: Iterator[bytes] = iter([b" " * 1000] * 4)
        problem(client.post("/v1/extract", content=pieces), 413, "too-large")


def test_a_prefix_that_cannot_fit_is_refused_with_numbers(
    make_service: Callable[..., Service], photos: Path, wide_archive: Archive, transform: TransformSpec
) -> None:
    with TestClient(app_of(make_service(memory_budget="1MB"))) as client:
        dataset = client.post("/v1/datasets", json={"uri": str(photos)}).json()["digest"]
        upload(client, wide_archive)
        body = {"dataset": dataset, "indices": [0], "model": wide_archive.digest, "transform": transform.to_json()}
        answer = client.post("/v1/extract", json=body)
        assert "No cut of this model fits here but input." in problem(answer, 507, "does-not-fit")
        assert answer.json()["needed_bytes"] > answer.json()["available_bytes"] > 0


def test_a_profile_has_every_cut(
    client: TestClient, request_body: dict[str, Any], archive: Archive, dataset: str
) -> None:
    body = {"model": archive.digest, "dataset": dataset, "transform": request_body["transform"], "samples": 4}
    profile = TierProfile.from_json(client.post("/v1/profile", json=body).json())
    assert [row.name for row in profile.rows] == [cut.name for cut in archive.graph.cuts]
    assert profile.load_seconds > 0
    assert profile.input_bytes > 0
    assert profile.details["remembered"] is False
    again = TierProfile.from_json(client.post("/v1/profile", json=body).json())
    assert (again.rows, again.details["remembered"]) == (profile.rows, True)
    anew = client.post("/v1/profile", json={**body, "refresh": True}).json()
    assert anew["details"]["remembered"] is False
    problem(client.post("/v1/profile", json={**body, "model": ABSENT}), 404, "unknown-model")
    problem(client.post("/v1/profile", json={**body, "samples": 1}), 422, "bad-input")


def test_what_requests_take_is_measured_anew_with_other_threads_that_decode(
    make_service: Callable[..., Service], archive: Archive, transform: TransformSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def beyond(*_: object) -> dict[str, float]:
        measured.append(workers)
        return {}

    monkeypatch.setattr("storage_server.service.beyond", beyond)
    for workers in (1, 1, 2):
        service = make_service(workers=workers)
        with TestClient(app_of(service)) as client:
            upload(client, archive)
            dataset = client.post("/v1/datasets", json={"uri": service.roots.uris[0]}).json()["digest"]
            body = {"model": archive.digest, "dataset": dataset, "transform": transform.to_json(), "samples": 2}
            assert client.post("/v1/profile", json=body).status_code == 200
    assert measured == [1, 2]


def test_the_status_counts(client: TestClient, request_body: dict[str, Any], photos: Path) -> None:
    client.post("/v1/extract", json=request_body)
    status = ServerStatus.model_validate(client.get("/v1/status").json())
    assert status.samples_done == 3
    assert status.roots == [photos.as_uri()]
    assert status.models == [request_body["model"]]
    assert 0 < status.used_bytes < status.budget_bytes
    assert (status.requests_active, status.requests_queued, status.draining) == (0, 0, False)


def test_the_link_probe_sends_what_was_asked_for(client: TestClient) -> None:
    for count in (0, 1, 2**20, 2**20 + 7):
        response = client.get(f"/v1/link?bytes={count}")
        assert len(response.content) == count == int(response.headers["content-length"])
    problem(client.get("/v1/link?bytes=1000000000000"), 413, "too-large")
    problem(client.get("/v1/link?bytes=-1"), 422, "bad-input")
    problem(client.get("/v1/link"), 422, "bad-input")


def test_probes_and_metrics(client: TestClient, request_body: dict[str, Any]) -> None:
    client.post("/v1/extract", json=request_body)
    assert client.get("/healthz").json() == {"alive": True}
    assert client.get("/readyz").json() == {"ready": True}
    text = client.get("/metrics").text
    for line in (
        'hapi_requests_total{route="/v1/extract",status="200"} 1.0',
        'hapi_samples_total{outcome="ok"} 2.0',
        'hapi_samples_total{outcome="failed"} 1.0',
        'hapi_extracts_total{outcome="ok"} 1.0',
        'hapi_stage_errors_total{kind="bad-image",stage="decode"} 1.0',
        "hapi_batch_samples_sum 2.0",
        "hapi_queued_bytes 0.0",
    ):
        assert line in text
    assert re.search(r'hapi_stage_seconds_total\{stage="prefix"\} [0-9.e-]+', text)


def test_a_body_that_is_no_json_is_told_where_it_breaks(client: TestClient) -> None:
    said = problem(client.post("/v1/datasets", content=b'{"uri":', headers=JSON), 422, "bad-input")
    assert said == "the request's body is not JSON: Expecting value at character 7."


@pytest.mark.parametrize(
    "headers", [{}, {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Type": "text/plain"}]
)
def test_json_that_does_not_say_so_is_told_which_header_to_send(client: TestClient, headers: dict[str, str]) -> None:
    said = problem(client.post("/v1/datasets", content=b'{"uri": "/"}', headers=headers), 422, "bad-input")
    assert said.endswith("Send the header Content-Type: application/json.")


@pytest.mark.parametrize("headers", [{}, JSON])
def test_a_request_without_a_body_is_told_so(client: TestClient, headers: dict[str, str]) -> None:
    assert "has no body" in problem(client.post("/v1/datasets", headers=headers), 422, "bad-input")


def test_a_transform_with_a_typo_is_told_what_comes_close(client: TestClient, request_body: dict[str, Any]) -> None:
    body = request_body | {"transform": [{"name": "CentreCrop", "args": {"size": 8}}]}
    assert "Did you mean CenterCrop" in problem(client.post("/v1/extract", json=body), 422, "bad-transform")


def test_unknown_paths_and_methods_are_problems_too(client: TestClient) -> None:
    problem(client.get("/v2/status"), 404, "bad-input")
    problem(client.post("/v1/status"), 405, "bad-input")


def test_a_failure_of_our_own_is_logged_under_a_mark_and_shows_no_details(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise KeyError("a secret of the server")

    monkeypatch.setattr(service, "status", fail)
    detail = problem(client.get("/v1/status"), 500, "failed")
    assert "secret" not in detail
    mark = re.search(r"look for ([0-9a-f]{8})", detail)
    assert mark
    assert mark[1] in caplog.text


def test_a_draining_server_is_not_ready_and_takes_nothing_new(
    client: TestClient, service: Service, request_body: dict[str, Any]
) -> None:
    service.admission.draining = True
    problem(client.get("/readyz"), 503, "busy")
    response = client.post("/v1/extract", json=request_body)
    problem(response, 503, "busy")
    assert int(response.headers["retry-after"]) >= 1
    assert client.get("/healthz").status_code == 200
    assert client.get("/v1/status").json()["draining"] is True


@pytest.fixture
def guarded(make_service: Callable[..., Service], photos: Path, tmp_path: Path) -> Iterator[TestClient]:
    """A server with two tenants: alice may read class a only."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        f'metrics_token = "{METRICS}"\n'
        f'[tenants.alice]\ntoken = "{ALICE}"\nroots = ["{photos}/a"]\n[tenants.bob]\ntoken = "{BOB}"\n'
    )
    with TestClient(app_of(make_service(tokens=tokens, host="0.0.0.0"))) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_every_route_below_v1_asks_for_a_token(guarded: TestClient) -> None:
    asked = 0
    for path, methods in guarded.app.openapi()["paths"].items():  # type: ignore[attr-defined]
        for method in methods:
            if path.startswith("/v1"):
                response = guarded.request(method, path.replace("{digest}", ABSENT))
                assert response.status_code == 401, (method, path)
                assert response.headers["www-authenticate"] == "Bearer"
                asked += 1
    assert asked == 11
    assert guarded.get("/v1/status", headers=bearer("wrong")).status_code == 401
    assert guarded.get("/v1/status", headers={"Authorization": f"Basic {ALICE}"}).status_code == 401
    assert guarded.get("/v1/status", headers=bearer(ALICE)).status_code == 200


def test_probes_are_open_and_metrics_have_their_own_token(guarded: TestClient) -> None:
    assert guarded.get("/healthz").status_code == 200
    assert guarded.get("/readyz").status_code == 200
    problem(guarded.get("/metrics"), 401, "unauthorized")
    problem(guarded.get("/metrics", headers=bearer(ALICE)), 401, "unauthorized")
    assert guarded.get("/metrics", headers=bearer(METRICS)).status_code == 200


def test_tenants_read_their_roots_and_list_their_models(guarded: TestClient, photos: Path, archive: Archive) -> None:
    whole = guarded.post("/v1/datasets", json={"uri": str(photos)}, headers=bearer(BOB))
    assert whole.status_code == 200
    problem(guarded.post("/v1/datasets", json={"uri": str(photos)}, headers=bearer(ALICE)), 403, "forbidden")
    body = {"dataset": whole.json()["digest"], "indices": [0], "cut": "input"}
    problem(guarded.post("/v1/extract", json=body, headers=bearer(ALICE)), 403, "forbidden")
    assert guarded.post("/v1/extract", json=body, headers=bearer(BOB)).status_code == 200
    problem(guarded.get(f"/v1/datasets/{body['dataset']}", headers=bearer(ALICE)), 403, "forbidden")
    assert guarded.post("/v1/datasets", json={"uri": f"{photos}/a"}, headers=bearer(ALICE)).status_code == 200
    assert guarded.get("/v1/status", headers=bearer(ALICE)).json()["roots"] == [f"{photos.as_uri()}/a"]
    assert upload(guarded, archive, headers=bearer(BOB)).status_code == 201
    assert guarded.get("/v1/models", headers=bearer(ALICE)).json() == {"models": []}
    path = f"/v1/models/{archive.digest}"
    problem(guarded.delete(path, headers=bearer(ALICE)), 404, "unknown-model")
    assert guarded.delete(path, headers=bearer(BOB)).status_code == 204


def test_tokens_are_never_logged(guarded: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    guarded.get("/v1/status", headers=bearer("guess-secret-0123456789"))
    guarded.get("/v1/status", headers=bearer(ALICE))
    assert "secret" not in caplog.text


def test_the_documentation_has_examples_and_error_answers(client: TestClient) -> None:
    assert client.get("/docs").status_code == 200
    document = client.get("/openapi.json").json()
    assert document["components"]["schemas"]["ExtractRequest"]["examples"][0]["cut"]
    extract = document["paths"]["/v1/extract"]["post"]
    assert ARROW_STREAM in extract["responses"]["200"]["content"]
    assert {"401", "404", "422", "429", "507"} <= extract["responses"].keys()
    answers = [
        (path, method, status, answer.get("content", {}).keys())
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        for status, answer in operation["responses"].items()
    ]
    assert [answer for answer in answers if answer[2] >= "400" and answer[3] != {PROBLEM_JSON}] == []
    assert document["paths"]["/v1/models/{digest}"]["put"]["requestBody"]["required"]


def test_every_error_has_a_status_and_survives_the_wire() -> None:
    def below(kind: type[errors.HapiError]) -> Iterator[type[errors.HapiError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from below(child)

    for kind in below(errors.HapiError):
        assert 400 <= status_of(kind("said")) < 600
        assert type(errors.from_kind(kind.kind, "said")) is kind
    assert len(set(STATUS)) == len(STATUS)


def test_what_strangers_send_is_not_read(guarded: TestClient) -> None:
    """Each could have had the server keep four megabytes, without a token."""
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("their body was asked for")

    async def send(message: Any) -> None:
        sent.append(message)

    for headers in ([], [(b"authorization", b"Bearer nobodys-token-0123456789")], [(b"authorization", b"Basic x")]):
        scope = {"type": "http", "method": "POST", "path": "/v1/extract", "query_string": b"", "headers": headers}
        asyncio.run(guarded.app(scope, receive, send))  # type: ignore[arg-type]
        assert sent[-2]["status"] == 401


def test_the_budget_in_the_metrics_is_that_of_the_moment(make_service: Callable[..., Service]) -> None:
    free = [10**9]
    service = make_service()
    service.budget = MemoryBudget(free=lambda device: free[0], held=lambda device: 0)
    free[0] = 10**8
    service.render_metrics()
    assert service.metrics.registry.get_sample_value("hapi_budget_bytes") == 10**8 - 10**9 // 20
