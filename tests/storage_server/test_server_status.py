"""What the server tells of itself: per prefix and tenant, to each what it may know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from awkward_models import Archive
from fastapi.testclient import TestClient

from hapi.data import TransformSpec
from hapi.wire.protocol import OTHERS, ServerStatus
from storage_server.extraction.engine import Prefix
from storage_server.http.app import app_of
from storage_server.scheduling.fair import Flow
from storage_server.service import Service
from storage_server.status import PREFIXES, TENANTS, Board

TOKENS = {name: f"{name}-secret-0123456789" for name in ("alice", "bob", "carol")}
MakeService = Callable[..., Service]


def tokens_file(folder: Path, head: str = "") -> Path:
    path = folder / "tokens.toml"
    tables = [f'[tenants.{name}]\ntoken = "{token}"' for name, token in TOKENS.items()]
    path.write_text("\n".join([head, *tables, "operator = true", "share = 2"]))
    return path


@pytest.fixture
def guarded(make_service: MakeService, tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(app_of(make_service(tokens=tokens_file(tmp_path)))) as client:
        yield client


def told(client: TestClient, name: str) -> ServerStatus:
    return ServerStatus.model_validate(client.get("/v1/status", headers=of(name)).raise_for_status().json())


def of(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[name]}"}


def extract(client: TestClient, name: str, photos: Path, archive: Archive, transform: TransformSpec) -> None:
    client.put(f"/v1/models/{archive.digest}", content=archive.path.read_bytes(), headers=of(name))
    dataset = client.post("/v1/datasets", json={"uri": str(photos)}, headers=of(name)).json()["digest"]
    body: dict[str, Any] = {
        "dataset": dataset,
        "indices": [0, 1, 12],
        "model": archive.digest,
        "transform": transform.to_json(),
    }
    client.post("/v1/extract", json=body, headers=of(name)).raise_for_status()


def test_a_tenant_sees_itself_and_the_others_together(
    guarded: TestClient, photos: Path, archive: Archive, transform: TransformSpec
) -> None:
    for name in ("alice", "bob"):
        extract(guarded, name, photos, archive, transform)
    mine, others = told(guarded, "alice").tenants
    assert (mine.name, mine.samples, mine.failed, mine.shared) == ("alice", 2, 1, 0)
    assert (others.name, others.samples, others.failed, others.shared) == (OTHERS, 2, 1, 2)
    assert mine.device_seconds > 0
    assert (mine.active, mine.waiting, mine.held_bytes) == (0, 0, 0)
    everyone = told(guarded, "carol").tenants
    assert [tenant.name for tenant in everyone] == ["alice", "bob"]


def test_a_prefix_is_told_with_its_batch_and_why(
    guarded: TestClient, photos: Path, archive: Archive, transform: TransformSpec
) -> None:
    extract(guarded, "alice", photos, archive, transform)
    status = told(guarded, "bob")
    (prefix,) = status.prefixes
    assert (prefix.cut, prefix.engine, prefix.device) == ("output", "eager", "cpu")
    assert (prefix.batch, prefix.reason) == (4, "exploring")
    assert (prefix.samples, prefix.waiting, prefix.out_of_memory) == (2, 0, 0)
    assert prefix.images_per_s > 0
    assert prefix.predicted_peak_bytes > prefix.weight_bytes > 0
    assert status.backlog_seconds == 0
    assert status.rss_bytes > 0
    assert 0 < status.queue_bytes < status.budget_bytes


def test_metrics_name_tenants_only_to_those_who_may_know(
    make_service: MakeService, tmp_path: Path, photos: Path, archive: Archive, transform: TransformSpec
) -> None:
    path = tokens_file(tmp_path)
    with TestClient(app_of(make_service(tokens=path))) as client:
        extract(client, "alice", photos, archive, transform)
        text = client.get("/metrics").text
        assert f'hapi_prefix_samples_total{{cut="output",model="{archive.digest[:12]}"' in text
        assert "alice" not in text
    tokens_file(tmp_path, 'metrics_token = "metrics-secret-0123456789"\n')
    with TestClient(app_of(make_service(tokens=path))) as client:
        extract(client, "alice", photos, archive, transform)
        text = client.get("/metrics", headers={"Authorization": "Bearer metrics-secret-0123456789"}).text
        assert 'hapi_tenant_samples_total{tenant="alice"} 2.0' in text
        assert 'hapi_tenant_share{tenant="alice"} 1.0' in text


def test_what_is_not_used_any_longer_is_forgotten(archive: Archive) -> None:
    board, prefix = Board(), Prefix.of(archive.graph, "output", "cpu", archive.digest)
    for number in range(PREFIXES + 10):
        prefix.key = (str(number), "output")
        board.computed(prefix, 1, 1.0)
    for number in range(TENANTS + 10):
        board.arrived(Flow(str(number)), done=1)
    assert (len(board.prefixes()), len(board.tenants())) == (PREFIXES, TENANTS)
    assert ("0", "output") not in board.prefixes()


def test_a_prefix_in_two_precisions_is_two_in_the_metrics(service: Service, archive: Archive) -> None:
    """They had equal labels, so that counters went up and down with whichever was used last."""
    for precision, samples in (("float32", 3), ("bf16", 5)):
        service.board.computed(Prefix.of(archive.graph, "output", "cpu", archive.digest, None, precision), samples, 1.0)
    told = [line for line in service.render_metrics().decode().splitlines() if "hapi_prefix_samples_total{" in line]
    assert sorted(line.rpartition(" ")[2] for line in told) == ["3.0", "5.0"]


def test_digests_by_which_others_models_could_be_used_are_for_operators(
    guarded: TestClient, photos: Path, archive: Archive, transform: TransformSpec
) -> None:
    extract(guarded, "alice", photos, archive, transform)
    for name, shown in (("bob", archive.digest[:12]), ("carol", archive.digest)):
        status = told(guarded, name)
        assert status.models == [prefix.model for prefix in status.prefixes] == [shown]
