"""How the hosts are made: the commands, with a fake that runs nothing, and once for real."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import pytest

from benchmarks.testbed import namespaces
from benchmarks.testbed.keeper import marked
from benchmarks.testbed.namespaces import NamespaceError, Namespaces, shaping
from benchmarks.testbed.testbed import open_testbed


class FakeSystem:
    """Remembers what it is told to start and to run."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.ran: list[str] = []

    def start(self, words: Sequence[str]) -> int:
        self.started.append(list(words))
        return 100 + len(self.started)

    def run(self, words: Sequence[str]) -> str:
        self.ran.append(" ".join(words))
        if "gso_ipv4_max_size" in words:
            raise NamespaceError("unknown word")  # as iproute2 of some years ago says
        return '[{"stats64": {"rx": {"bytes": 12}, "tx": {"bytes": 34}}}]'


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    monkeypatch.setattr(namespaces, "_wait_until_apart", lambda *processes: None)
    monkeypatch.setattr(namespaces.shutil, "which", lambda tool: f"/sbin/{tool}")
    return FakeSystem()


def test_root_makes_two_joined_namespaces(system: FakeSystem) -> None:
    pair = Namespaces(system.start, rootless=False, run=system.run)
    assert system.started == [
        ["unshare", "-n", "sleep", "infinity"],
        ["nsenter", "-t", "101", "-n", "unshare", "-n", "sleep", "infinity"],
    ]
    assert system.ran == [
        "nsenter -t 101 -n ip link add eth-c type veth peer name eth-s",
        "nsenter -t 101 -n ip link set eth-s netns 102",
        "nsenter -t 102 -n ip addr add 10.77.0.1/24 dev eth-s",
        "nsenter -t 102 -n ip link set eth-s up",
        "nsenter -t 102 -n ip link set lo up",
        "nsenter -t 101 -n ip addr add 10.77.0.2/24 dev eth-c",
        "nsenter -t 101 -n ip link set eth-c up",
        "nsenter -t 101 -n ip link set lo up",
    ]
    assert pair.user() == []
    assert pair.carried() == (12, 34)


def test_others_make_them_inside_of_a_user_namespace(system: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces.os, "getuid", lambda: 1000)
    pair = Namespaces(system.start, rootless=True, run=system.run)
    assert system.started[0] == ["unshare", "-U", "-r", "-n", "sleep", "infinity"]
    assert pair.enter_storage() == ["nsenter", "-t", "102", "-U", "--preserve-credentials", "-n"]
    assert pair.user() == ["unshare", "-U", "--map-user=1000", "--map-group=1000"]


def test_both_directions_are_shaped(system: FakeSystem) -> None:
    pair = Namespaces(system.start, rootless=False, run=system.run)
    del system.ran[:]
    pair.shape(20e6)
    pair.shape(None)
    assert [line for line in system.ran if " tc " in line] == [
        "nsenter -t 102 -n tc qdisc replace dev eth-s root tbf rate 20000000bit burst 18867b limit 1067443b",
        "nsenter -t 101 -n tc qdisc replace dev eth-c root tbf rate 20000000bit burst 18867b limit 1067443b",
        "nsenter -t 102 -n tc qdisc replace dev eth-s root pfifo limit 1000",
        "nsenter -t 101 -n tc qdisc replace dev eth-c root pfifo limit 1000",
    ]


def test_connections_take_turns_in_a_queue_with_room_for_all(system: FakeSystem) -> None:
    Namespaces(system.start, rootless=False, run=system.run).shape(20e6)
    assert [line for line in system.ran if " sh " in line] == [
        f"nsenter -t {host} -n sh -c echo 32768 > /proc/sys/net/ipv4/tcp_limit_output_bytes" for host in (102, 101)
    ]


def test_the_bucket_grows_with_the_rate() -> None:
    assert "burst 70968b" in " ".join(shaping("eth-s", 5e8))
    assert "burst 1250000b" in " ".join(shaping("eth-s", 1e10))


def test_a_machine_without_the_tools_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces.shutil, "which", lambda tool: None if tool == "tc" else tool)
    with pytest.raises(NamespaceError, match="need tc"):
        Namespaces(FakeSystem().start, rootless=False)


def test_two_real_hosts_reach_one_another_and_are_gone_afterwards() -> None:
    try:
        with open_testbed("namespaces") as bed:
            bed.link.shape(50e6)
            before = bed.link.carried()
            heard = subprocess.Popen(
                bed.storage.command("python3", "-c", LISTEN, bed.storage.address),
                stdout=subprocess.PIPE, text=True, env=bed.storage.environment(),
            )  # fmt: skip
            assert heard.stdout is not None
            port = heard.stdout.readline().strip()
            subprocess.run(
                bed.compute.command("python3", "-c", SEND, bed.storage.address, port),
                check=True, env=bed.compute.environment(), timeout=60,
            )  # fmt: skip
            assert heard.stdout.read().strip() == "100000"
            heard.stdout.close()
            heard.wait(30)
            after = bed.link.carried()
            assert before is not None
            assert after is not None
            assert 100_000 < after[1] - before[1] < 150_000
            mark, folder = bed.mark, bed.folder
            assert marked(mark)
    except NamespaceError as error:
        pytest.skip(f"no network namespaces on this machine (CAP_NET_ADMIN or user namespaces): {error}")
    assert not marked(mark)
    assert not folder.exists()


LISTEN = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    client, total = server.accept()[0], 0
    while piece := client.recv(65536):
        total += len(piece)
    client.close()
    print(total)
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as link:
    link.sendall(bytes(100_000))
"""
