"""The compose file, as far as a machine without Docker can check it: its YAML, commands, settings and files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from benchmarks.objectstore import Endpoint
from hapi.cli import build_app
from hapi.data import build_manifest
from hapi.settings import StoreSettings
from storage_server.access.auth import load_tokens
from storage_server.access.roots import Roots
from storage_server.http.server import CLOSE_SECONDS
from storage_server.settings import ServerSettings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())


def hapi_commands(compose: dict[str, Any]) -> dict[str, list[str]]:
    return {name: service["command"] for name, service in compose["services"].items() if service["image"] == "hapi"}


@pytest.mark.parametrize("service", ["bucket", "storage-server", "client"])
def test_every_hapi_command_parses(compose: dict[str, Any], service: str) -> None:
    command: Any = typer.main.get_command(build_app())
    arguments = list(hapi_commands(compose)[service])
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    assert command.make_context(command.name, arguments).params


def test_every_hapi_service_is_covered(compose: dict[str, Any]) -> None:
    assert set(hapi_commands(compose)) == {"bucket", "storage-server", "client"}


def test_store_settings_are_real_settings(compose: dict[str, Any]) -> None:
    for name in compose["x-store"]:
        assert name.removeprefix("HAPI_S3_").lower() in StoreSettings.model_fields


@pytest.mark.s3
def test_the_bucket_command_fills_a_real_store(compose: dict[str, Any], s3_store: Endpoint) -> None:
    command = ["10" if word == "300" else word for word in compose["services"]["bucket"]["command"]]
    environment = {**os.environ, **s3_store.environment()}
    done = subprocess.run(
        [sys.executable, "-m", "hapi.cli", *command], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    target = next(word for word in command if word.startswith("s3://"))
    manifest = build_manifest(target, settings=s3_store.settings())
    assert len(manifest) == 10
    assert len(manifest.classes) == 5


def test_services_wait_for_services_that_exist(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}, which reports no health"


def test_the_store_is_pinned_by_digest_and_has_a_console(compose: dict[str, Any]) -> None:
    minio = compose["services"]["minio"]
    assert re.fullmatch(r"quay\.io/minio/minio:RELEASE\.[\w-]+@sha256:[0-9a-f]{64}", minio["image"])
    assert "--console-address" in minio["command"]


def test_ports_are_published_on_loopback_only(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_every_variable_is_in_the_example(compose: dict[str, Any]) -> None:
    text = (DEPLOY / "docker-compose.yml").read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    offered = set(re.findall(r"^(\w+)=", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert used == offered


def test_secrets_without_a_value_stop_compose() -> None:
    text = (DEPLOY / "docker-compose.yml").read_text()
    for secret in ("HAPI_S3_SECRET_KEY", "HAPI_TOKEN"):
        assert all(use.startswith(":?") for use in re.findall(rf"\$\{{{secret}([^}}]*)", text))


def test_example_tokens_are_a_tokens_file() -> None:
    table = load_tokens(DEPLOY / "tokens.example.toml", Roots(["s3://photos"]))
    assert table.tenant("put-at-least-16-characters-here").name == "demo"


def test_the_example_tenant_may_read_every_address_that_is_told(compose: dict[str, Any]) -> None:
    served = Roots(["s3://photos"])
    tenant = load_tokens(DEPLOY / "tokens.example.toml", served).tenant("put-at-least-16-characters-here")
    told = re.findall(r"--data (s3://\S+?)[`\s]", (DEPLOY / "README.md").read_text())
    asked = compose["services"]["client"]["command"]
    for address in [*told, asked[asked.index("--data") + 1]]:
        assert tenant.roots.admit(address) == address
    assert len(told) == 2


def test_another_store_can_take_minios_place(compose: dict[str, Any]) -> None:
    assert compose["x-store"]["HAPI_S3_ENDPOINT"] == "${HAPI_S3_ENDPOINT:-http://minio:9000}"
    for name in ("bucket", "storage-server"):
        assert compose["services"][name]["environment"] == compose["x-store"]


def test_swap_does_not_extend_the_server_s_memory_and_it_may_end_its_requests(compose: dict[str, Any]) -> None:
    server = compose["services"]["storage-server"]
    assert server["memswap_limit"] == server["mem_limit"]
    patience = ServerSettings(roots=("s3://photos",)).grace_seconds + CLOSE_SECONDS
    assert float(server["stop_grace_period"].removesuffix("s")) > patience


def test_the_image_can_compile_networks() -> None:
    assert re.search(r"apt-get install .*\bg\+\+", (DEPLOY / "Dockerfile").read_text())


def test_image_copies_every_package_and_the_build_files() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    project = DEPLOY.parent
    for package in sorted(path.parent.name for path in project.glob("*/py.typed")):
        assert re.search(rf"^COPY {package} {package}$", dockerfile, re.MULTILINE), f"{package} is not in the image"
    for name in re.findall(r"^COPY (pyproject.*) \./$", dockerfile, re.MULTILINE)[0].split():
        assert (project / name).is_file()
