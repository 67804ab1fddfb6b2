"""Free memory as control groups see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hapi.machine import cgroup_free_bytes, cpu_name, free_bytes, machine_name

GIB = 2**30


def group(path: Path, limit: str, usage: int, cache: int = 0, version: int = 2, active: int = 0) -> None:
    path.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (path / names[0]).write_text(f"{limit}\n")
    (path / names[1]).write_text(f"{usage}\n")
    key = "" if version == 2 else "total_"
    (path / "memory.stat").write_text(f"anon 5\n{key}inactive_file {cache}\n{key}active_file {active}\nodd\n")


def proc(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "cgroup"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_version_2_takes_the_least_of_all_groups_above(tmp_path: Path) -> None:
    mount = tmp_path / "sys"
    group(mount / "pods", str(8 * GIB), 7 * GIB)
    group(mount / "pods" / "mine", str(4 * GIB), 1 * GIB)
    group(mount / "pods" / "mine" / "inner", "max", 0)
    assert cgroup_free_bytes(proc(tmp_path, "0::/pods/mine/inner"), mount) == 1 * GIB


def test_inside_a_container_the_mount_itself_is_the_group(tmp_path: Path) -> None:
    group(tmp_path / "sys", str(2 * GIB), GIB // 2)
    assert cgroup_free_bytes(proc(tmp_path, "0::/"), tmp_path / "sys") == 3 * GIB // 2
    assert cgroup_free_bytes(proc(tmp_path, "0::/not/visible/here"), tmp_path / "sys") == 3 * GIB // 2


def test_file_cache_counts_as_free(tmp_path: Path) -> None:
    group(tmp_path / "sys", str(4 * GIB), 4 * GIB, cache=2 * GIB, active=GIB)
    assert cgroup_free_bytes(proc(tmp_path, "0::/"), tmp_path / "sys") == 3 * GIB


def test_version_1_and_its_way_to_say_unlimited(tmp_path: Path) -> None:
    mount = tmp_path / "sys"
    group(mount / "memory", str(2**63 - 4096), GIB, version=1)
    group(mount / "memory" / "job", str(3 * GIB), 2 * GIB, cache=GIB, version=1)
    assert cgroup_free_bytes(proc(tmp_path, "4:cpu,memory:/job", "0::/"), mount) == 2 * GIB
    assert cgroup_free_bytes(proc(tmp_path, "4:memory:/"), mount) is None


def test_a_group_over_its_limit_has_nothing_free(tmp_path: Path) -> None:
    group(tmp_path / "sys", str(GIB), 2 * GIB)
    assert cgroup_free_bytes(proc(tmp_path, "0::/"), tmp_path / "sys") == 0


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_free_bytes(tmp_path / "absent", tmp_path) is None
    assert cgroup_free_bytes(proc(tmp_path, "0::/"), tmp_path / "nowhere") is None


def test_the_host_is_never_more_than_its_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hapi.machine.cgroup_free_bytes", lambda: 12345)
    assert free_bytes("cpu") == 12345
    monkeypatch.setattr("hapi.machine.cgroup_free_bytes", lambda: None)
    assert free_bytes("cpu") > 12345


def test_a_machine_is_known_until_it_starts_anew(tmp_path: Path) -> None:
    boot = tmp_path / "boot_id"
    assert machine_name(boot) == "", "the system does not tell"
    boot.write_text("one\n")
    first = machine_name(boot)
    assert first == machine_name(boot)
    assert "one" not in first
    boot.write_text("another\n")
    assert machine_name(boot) != first


def test_the_processor_has_the_name_that_the_kernel_tells(tmp_path: Path) -> None:
    said = tmp_path / "cpuinfo"
    said.write_text("processor\t: 0\nmodel name\t: Fast 9000: the second\nflags\t: a b\n\nmodel name\t: Slow\n")
    assert cpu_name(said) == "Fast 9000: the second"
    said.write_text("vendor_id\t: X\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: Fast\nstepping\t: 1\n\n")
    assert cpu_name(said) == "Fast (family 25, model 17, stepping 1)"
    said.write_text("processor\t: 0\n")
    assert cpu_name(said) == cpu_name(tmp_path / "none") != ""
