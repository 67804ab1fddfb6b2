"""OpenStack Swift with its S3 interface: how it is installed from PyPI and configured for one machine."""

from __future__ import annotations

import base64
import os
import pwd
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks import installing
from benchmarks.installing import ObjectStoreError

NAME = "swift"
VERSION = "2.38.3"
REGION = "us-east-1"
ACCESS_KEY = "test:tester"
ACCESS_KEY_FORM = r"[\w.-]+:[\w.-]+"
ACCESS_KEY_WORDS = "account:user, like test:tester"
REMARK = f"objects come from OpenStack Swift {VERSION}"
SERVERS = ("object", "container", "account", "proxy")
"""In starting order; `proxy` is the one that clients talk to."""
MEMCACHED = "memcached"
"""Every deployed Swift has it: its proxy remembers accounts, buckets and tokens there, instead of asking each time."""

_PIPELINE = "catch_errors gatekeeper healthcheck cache listing_formats bulk s3api tempauth copy slo proxy-server"
_EGGS = {"cache": "memcache"}
_RING = """
import sys
from swift.common.ring import RingBuilder
folder, *ports = sys.argv[1:]
for kind, port in (item.split("=") for item in ports):
    builder = RingBuilder(4, 1, 0)
    builder.add_dev(dict(region=1, zone=1, ip="127.0.0.1", port=int(port), device="d1", weight=1.0,
                         replication_ip="127.0.0.1", replication_port=int(port)))
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{kind}.ring.gz")
"""


def install() -> Path:
    """Installs it, once; answers where."""
    venv = installing.cached(f"swift-{VERSION}", "HAPI_SWIFT_VENV")
    installing.install(f"swift=={VERSION}", venv, "install it and set HAPI_SWIFT_VENV")
    return venv


def servers() -> tuple[str, ...]:
    """What is started here, in order: memcached where it is installed (Debian's package memcached), and Swift's own.
    The last one is what clients talk to."""
    return SERVERS if shutil.which(MEMCACHED) is None else (MEMCACHED, *SERVERS)


def prepare(
    root: Path, venv: Path, host: str, ports: Mapping[str, int], access_key: str, secret_key: str
) -> dict[str, list[str]]:
    """Writes configuration and rings below `root`; the command line of each server. Data of an earlier start stays
    readable."""
    check_file_system(root)
    configure(root, venv, host, ports, access_key, secret_key)
    return {kind: _command(kind, venv, root, ports) for kind in ports}


def health(kind: str, host: str, ports: Mapping[str, int]) -> str | None:
    """What answers once a server does; nothing for memcached, which listens at once and is not needed."""
    own = host if kind == SERVERS[-1] else "127.0.0.1"
    return None if kind == MEMCACHED else f"http://{own}:{ports[kind]}/healthcheck"


def _command(kind: str, venv: Path, folder: Path, ports: Mapping[str, int]) -> list[str]:
    if kind == MEMCACHED:
        found = shutil.which(MEMCACHED)
        assert found is not None
        user = pwd.getpwuid(os.geteuid()).pw_name
        return [found, "-l", "127.0.0.1", "-p", str(ports[kind]), "-U", "0", "-m", "64", "-t", "1", "-u", user]
    return [str(venv / f"bin/swift-{kind}-server"), str(folder / f"etc/{kind}-server.conf")]


def check_file_system(folder: Path) -> None:
    """Swift keeps its metadata in extended attributes: says so where the file system has none."""
    probe = folder / ".xattr-probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.hapi.probe", b"x" * 64)
    except OSError as error:
        raise ObjectStoreError(
            f"{folder}: the file system has no user extended attributes ({error.strerror}), which Swift needs. "
            "Choose a root on ext4, xfs or btrfs."
        ) from error
    finally:
        probe.unlink()


def configure(root: Path, venv: Path, host: str, ports: Mapping[str, int], access_key: str, secret_key: str) -> None:
    """Writes the configuration and rings below `root`; data of an earlier start stays readable."""
    etc, data = root / "etc", root / "data"
    etc.mkdir(parents=True, exist_ok=True)
    (data / "d1").mkdir(parents=True, exist_ok=True)
    suffix = root / "hash_suffix"  # objects are found by a hash over it: it must outlive restarts
    if not suffix.exists():
        suffix.write_text(secrets.token_hex(16))
    _write(
        etc / "swift.conf",
        f"[swift-hash]\nswift_hash_path_suffix = {suffix.read_text()}\n"
        "[storage-policy:0]\nname = default\ndefault = yes\n",
    )
    common = (
        f"user = {pwd.getpwuid(os.geteuid()).pw_name}\nswift_dir = {etc}\nlog_level = WARNING\n"
        "fallocate_reserve = 0\ndisable_fallocate = true\n"
    )
    _write(etc / "proxy-server.conf", _proxy(host, ports, access_key, secret_key, common))
    for kind in ("account", "container", "object"):
        _write(etc / f"{kind}-server.conf", _backend(kind, ports[kind], data, common))
    rings = [f"{kind}={ports[kind]}" for kind in ("account", "container", "object")]
    subprocess.run([str(venv / "bin/python"), "-c", _RING, str(etc), *rings], check=True, capture_output=True)


def _proxy(host: str, ports: Mapping[str, int], access_key: str, secret_key: str, common: str) -> str:
    pipeline = [name for name in _PIPELINE.split() if name != "cache" or MEMCACHED in ports]
    account, user = (base64.b64encode(part.encode()).decode().rstrip("=") for part in access_key.split(":"))
    extra = {
        "s3api": f"location = {REGION}\n",
        "tempauth": f"user64_{account}_{user} = {secret_key} .admin\n",
        "versioned_writes": "allow_versioned_writes = true\nallow_object_versioning = true\n",
    }
    if MEMCACHED in ports:
        extra["cache"] = f"memcache_servers = 127.0.0.1:{ports[MEMCACHED]}\n"
    sections = "".join(
        f"[filter:{name}]\nuse = egg:swift#{_EGGS.get(name, name)}\n{extra.get(name, '')}" for name in pipeline[:-1]
    )
    return (
        f"[DEFAULT]\nbind_ip = {host}\nbind_port = {ports['proxy']}\nworkers = 0\n{common}"
        f"[pipeline:main]\npipeline = {' '.join(pipeline)}\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\nobject_chunk_size = 1048576\n"
        f"client_chunk_size = 1048576\nnode_timeout = 60\n{sections}"
    )


def _backend(kind: str, port: int, data: Path, common: str) -> str:
    large = "keep_cache_size = 1073741824\nkeep_cache_private = true\nlog_requests = false\n"
    chunks = "disk_chunk_size = 1048576\nnetwork_chunk_size = 1048576\n"
    return (
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\ndevices = {data}\nmount_check = false\n"
        f"{common}[pipeline:main]\npipeline = healthcheck {kind}-server\n"
        f"[app:{kind}-server]\nuse = egg:swift#{kind}\n{large + chunks if kind == 'object' else ''}"
        "[filter:healthcheck]\nuse = egg:swift#healthcheck\n"
    )


def _write(path: Path, text: str) -> None:
    """Only the user may read it: one of the files holds the secret key."""
    path.touch(mode=0o600)
    path.write_text(text)
