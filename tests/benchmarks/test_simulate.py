"""What must hold of simulations: bounds by work, the planner's model for one tenant, nothing lost in failures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulate.cluster import Autoscaling, ClusterSpec, Failures, simulate
from benchmarks.simulate.lanes import FairServer, Line, SharedLine, StorageNode
from benchmarks.simulate.tenants import IN_FLIGHT, JobSpec
from compute_client import DataLoader
from hapi import cli
from hapi.plan import CutCost, Link, Plan, Profile, Share
from profiler.planner import plan

PROFILE = Profile(
    "toy",
    100e3,
    (CutCost("input", 100e3, 0.0002, 0.03), CutCost("middle", 50e3, 0.01, 0.02), CutCost("output", 5e3, 0.028, 0.0003)),
    Link(1e9, 0.001),
    samples=2000,
    batch_size=64,
)


def job(policy: str = "mix", **changes: object) -> JobSpec:
    chosen = plan(PROFILE, policy)
    made = JobSpec(PROFILE, chosen, 1e9, 0.001, samples=2000, epochs=1, span=64)
    return replace(made, **changes)


@pytest.mark.parametrize("policy", ["none", "all", "single", "mix", "middle"])
def test_alone_it_takes_what_the_planner_predicts(policy: str) -> None:
    outcome = simulate(ClusterSpec(1), [job(policy)])
    assert outcome.makespan_seconds == pytest.approx(plan(PROFILE, policy).predicted_seconds, rel=0.05)
    assert outcome.slowdowns[0] == pytest.approx(1.0, rel=0.05)


@given(nodes=st.integers(1, 6), tenants=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_no_faster_than_its_work_and_all_of_it_is_done(nodes: int, tenants: int) -> None:
    one = job("all", samples=320)
    outcome = simulate(ClusterSpec(nodes), [one] * tenants)
    work = tenants * 320 * 0.028
    assert outcome.makespan_seconds >= work / nodes
    assert outcome.bytes == pytest.approx(tenants * 320 * 5e3)
    assert 0 < outcome.busy <= 1
    assert outcome.node_hours * 3600 == pytest.approx(nodes * outcome.makespan_seconds, rel=1e-6)


def test_more_nodes_are_not_slower() -> None:
    jobs = [job("all", samples=640)] * 24
    times = [simulate(ClusterSpec(nodes), jobs).makespan_seconds for nodes in (1, 2, 4, 8)]
    assert times == sorted(times, reverse=True)
    assert times[0] / times[2] > 3


def test_a_small_job_beside_large_ones_is_served_in_proportion() -> None:
    outcome = simulate(ClusterSpec(1), [job("all", samples=6400)] * 4 + [job("all", samples=64, start_seconds=5.0)])
    assert outcome.slowdowns[-1] < 6  # five share the node; one more span may just have begun
    assert max(outcome.slowdowns[:-1]) / min(outcome.slowdowns[:-1]) < 1.1


def test_failed_nodes_cost_time_and_nothing_else() -> None:
    jobs = [job("all", samples=640)] * 10
    steady = simulate(ClusterSpec(4), jobs)
    rough = simulate(ClusterSpec(4, failures=Failures(20.0, 5.0), seed=1), jobs)
    assert rough.retries > 0
    assert rough.makespan_seconds > steady.makespan_seconds
    assert rough.bytes == steady.bytes
    assert len(rough.slowdowns) == 10
    assert rough == simulate(ClusterSpec(4, failures=Failures(20.0, 5.0), seed=1), jobs)


def test_nodes_are_added_under_load_and_taken_away_after_it() -> None:
    jobs = [job("all")] * 24 + [job("none", start_seconds=400.0)]
    fixed = simulate(ClusterSpec(1), jobs)
    grown = simulate(ClusterSpec(1, autoscaling=Autoscaling(8, interval_seconds=10.0, start_seconds=20.0)), jobs)
    assert grown.makespan_seconds < fixed.makespan_seconds
    assert 1 < grown.most_nodes <= 8
    assert grown.node_hours < 8 * grown.makespan_seconds / 3600


def test_nodes_that_are_still_starting_at_the_end_cost_no_more_than_until_then() -> None:
    rule = Autoscaling(3, interval_seconds=10.0, start_seconds=1e6)
    outcome = simulate(ClusterSpec(1, autoscaling=rule), [job("all")] * 4)
    assert outcome.most_nodes == 1
    ended = outcome.makespan_seconds
    assert outcome.node_hours * 3600 == pytest.approx(ended + (ended - 10.0))


def test_nodes_are_added_as_well_when_it_is_their_interfaces_that_are_full() -> None:
    jobs = [job("none")] * 24
    narrow = {
        "node_bandwidth_bits_per_s": 1e8,
        "autoscaling": Autoscaling(4, interval_seconds=10.0, start_seconds=10.0),
    }
    grown = simulate(ClusterSpec(1, **narrow), jobs)
    assert grown.most_nodes == 4


def test_nodes_are_added_as_well_when_it_is_their_readers_that_are_behind() -> None:
    slow = replace(PROFILE, cuts=(replace(PROFILE.cuts[0], server_seconds=0.01), *PROFILE.cuts[1:]))
    jobs = [job("none", profile=slow)] * 24
    grown = simulate(ClusterSpec(1, autoscaling=Autoscaling(4, interval_seconds=10.0, start_seconds=10.0)), jobs)
    assert grown.most_nodes == 4


def test_later_epochs_of_cached_features_ask_no_node() -> None:
    cached = simulate(ClusterSpec(1), [job("all", epochs=5, head_seconds=0.0003)])
    again = simulate(ClusterSpec(1), [job("all", epochs=5)])
    assert cached.bytes * 5 == again.bytes
    assert cached.makespan_seconds < again.makespan_seconds / 4


def test_a_client_asks_for_as_many_spans_at_once_as_a_loader_does() -> None:
    assert signature(DataLoader).parameters["requests_in_flight"].default == IN_FLIGHT


def test_a_line_serves_in_order() -> None:
    environment = simpy.Environment()
    line, ends = Line(environment), []
    for seconds in (2.0, 1.0, 3.0):
        line.serve(seconds).callbacks.append(lambda _: ends.append(environment.now))
    environment.run()
    assert ends == [2.0, 3.0, 6.0]
    assert line.busy_seconds == 6.0


def test_connections_share_a_link_equally_and_each_keeps_its_order() -> None:
    environment = simpy.Environment()
    line, ends = SharedLine(environment), list[tuple[str, float]]()

    def carry(name: str, connection: int, seconds: float) -> None:
        line.carry(connection, seconds).callbacks.append(lambda _: ends.append((name, environment.now)))

    carry("a", 1, 2.0)
    carry("b", 2, 1.0)
    carry("a, later", 1, 1.0)
    environment.run(until=1.0)  # half a second's worth of both is through
    carry("c", 3, 0.25)
    environment.run()
    assert [name for name, _ in ends] == ["c", "b", "a", "a, later"]
    assert [moment for _, moment in ends] == pytest.approx([1.75, 2.25, 3.25, 4.25])
    carry("alone", 4, 2.0)
    environment.run()
    assert ends[-1][1] == pytest.approx(6.25)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0.0, 5.0), st.floats(0.0, 3.0)), min_size=1, max_size=12))
def test_a_shared_link_never_rests_while_there_is_something(pieces: list[tuple[int, float, float]]) -> None:
    environment = simpy.Environment()
    line, ends = SharedLine(environment), list[float]()

    def send(connection: int, at: float, seconds: float) -> Iterator[simpy.Event]:
        yield environment.timeout(at)
        yield line.carry(connection, seconds)
        ends.append(environment.now)

    for piece in pieces:
        environment.process(send(*piece))
    environment.run()
    free_at = 0.0
    for _, at, seconds in sorted(pieces, key=lambda piece: piece[1]):
        free_at = max(free_at, at) + seconds
    assert len(ends) == len(pieces)
    assert max(ends) == pytest.approx(free_at)


def test_a_stopped_node_loses_what_it_held_and_comes_back_empty() -> None:
    environment = simpy.Environment()
    node = StorageNode(environment, 0, 1e9)
    held = [node.device.submit(0, 5.0), node.device.submit(1, 5.0), node.readers.submit(0, 5.0)]
    environment.run(until=2.0)
    node.stop()
    environment.run(until=3.0)
    assert [event.value for event in held] == [False, False, False]
    assert node.is_idle
    node.start()
    served = node.device.submit(0, 1.0)
    assert environment.run(until=served) is True
    assert node.up_seconds == 2.0


def test_a_mix_deals_its_spans_by_share() -> None:
    chosen = Plan("mix", (Share("input", 0.5), Share("output", 0.5)), None, None)
    outcome = simulate(ClusterSpec(1), [job(plan=chosen)])
    assert outcome.bytes == pytest.approx(1000 * 105e3, rel=0.05)


def test_requests_of_one_lane_share_a_batch_and_become_ready_together() -> None:
    environment = simpy.Environment()
    server, ready = FairServer(environment, batch=32), list[tuple[str, int, float]]()

    def told(name: str) -> Callable[[int], None]:
        return lambda count: ready.append((name, count, environment.now))

    for name, lane in (("first", "a"), ("second", "a"), ("other", "b"), ("third", "a")):
        server.submit(0 if name != "third" else 1, 0.1, samples=12, lane=lane, part=told(name))
    environment.run()
    assert ready[:3] == [("first", 12, pytest.approx(3.2)), ("second", 12, pytest.approx(3.2)),
                         ("third", 8, pytest.approx(3.2))]  # fmt: skip
    assert sorted(ready[3:]) == [("other", 12, pytest.approx(4.8)), ("third", 4, pytest.approx(3.6))]
    assert server.pieces_done == 4


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90), st.sampled_from("ab")), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_every_sample_is_served_once_and_takes_its_time(requests: list[tuple[int, int, str]]) -> None:
    environment = simpy.Environment()
    server, served = FairServer(environment), dict.fromkeys(range(len(requests)), 0)

    def told(number: int) -> Callable[[int], None]:
        def add(count: int) -> None:
            served[number] += count

        return add

    for number, (tenant, samples, lane) in enumerate(requests):
        server.submit(tenant, 0.01, samples, lane, told(number))
    environment.run()
    assert list(served.values()) == [samples for _, samples, _ in requests]
    assert server.busy_seconds == pytest.approx(0.01 * sum(served.values()))
    assert environment.now == pytest.approx(server.busy_seconds)
    assert server.is_idle


def test_plans_follow_the_nodes_that_are_up() -> None:
    shares: list[float] = []

    def replan(share: float) -> Plan:
        shares.append(share)
        return plan(PROFILE, "mix", server_share=share)

    jobs = [job(samples=6400, replan=replan) for _ in range(8)]
    grown = simulate(ClusterSpec(1, autoscaling=Autoscaling(8, 5.0, 5.0)), jobs)
    assert grown.most_nodes > 1
    assert shares[0] == 1 / 8  # eight share one node
    assert shares[-1] > 0.5  # and later several
    assert len(shares) < 8 * 20


def test_a_plan_that_follows_is_not_slower_than_one_for_a_node_alone() -> None:
    fixed = [job("mix", samples=3200)] * 8
    following = [job("mix", samples=3200, replan=lambda share: plan(PROFILE, "mix", server_share=share))] * 8
    cluster = ClusterSpec(1)
    assert simulate(cluster, following).makespan_seconds < simulate(cluster, fixed).makespan_seconds


def test_tenants_of_one_host_share_its_processor() -> None:
    apart = simulate(ClusterSpec(4), [job("none", samples=320)] * 4)
    together = simulate(ClusterSpec(4), [job("none", samples=320, host=0)] * 4)
    assert together.makespan_seconds == pytest.approx(4 * apart.makespan_seconds, rel=0.05)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["hapi", "bench", "simulate", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_the_command_simulates_a_profile_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(PROFILE.to_json()))
    assert run(monkeypatch, "--profile", str(file), "--cell", "2:6", "--samples", "128", "--json",
               "--report", str(tmp_path / "page")) == 0  # fmt: skip
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["system"], row["condition"]) for row in rows} >= {
        ("none", "steady"),
        ("mix", "steady"),
        ("mix", "failures"),
    }
    assert all(not row["failed"] and row["seconds"] > 0 for row in rows)
    assert all(cut["cuts"] for row in rows for cut in row["cuts"])
    assert {path.name for path in (tmp_path / "page").glob("*.png")} == {"makespan.png", "slowdown.png", "cost.png"}


def test_a_cell_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--cell", "two") == 2
    assert "10:200" in capsys.readouterr().err
