"""The published rules, against numbers worked out by hand from their formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
from example_profiles import profile_of

from hapi.errors import ProfileError
from hapi.plan import Profile
from profiler import plan
from profiler.paper import choose_paper, choose_paper_v1, client_memory, estimate, memory_v1

# five cuts: input, cut1 (banned in v3), cut2, cut3, output
ROWS = (
    (110_000, 0.0001, 0.0050),
    (800_000, 0.0010, 0.0040),
    (400_000, 0.0015, 0.0030),
    (200_000, 0.0020, 0.0020),
    (8_000, 0.0040, 0.0001),
)


def example(**job: object) -> Profile:
    return profile_of(*ROWS, bits_per_s=1e9, **({"samples": 51_200, "batch_size": 1024} | job))


def test_estimate_by_hand_with_two_waves() -> None:
    # B = 1024: W = 2, par = 4, n_inf = 16; out = 400 kB x 1024 = 409.6 MB, so the larger copy constant
    out = 400_000 * 1024 * 1.00000033
    stages = 512 * 0.0015
    copy = out * 7.52775484e-12 * 16 / 8
    pickle = out * 9.00549092e-10 / 8
    send = out / (8 * (125e6 / 4))
    stream = 2 * (stages + copy + pickle + send)
    client = out * 1.0190668e-10 + out * 2.70339617e-10 + 1024 * 0.0030
    not_parallel = out * (4.76287825e-10 + 4.57389807e-10)
    total = stream + (max(stream, client) + not_parallel) * (51_200 / 1024 - 1) + not_parallel + client
    got = estimate(example(), 2)
    assert got.stream == pytest.approx(stream, rel=1e-12)
    assert got.client == pytest.approx(client, rel=1e-12)
    assert got.not_parallel == pytest.approx(not_parallel, rel=1e-12)
    assert got.total == pytest.approx(total, rel=1e-12)
    assert got.sequential == pytest.approx((stream + client + not_parallel) * 50, rel=1e-12)
    assert round(got.total, 3) == 268.214  # the same on a pocket calculator


def test_estimate_by_hand_with_part_of_a_wave() -> None:
    # B = 192: W = 1, par = 1.5, n_inf = 8; out = 8 kB x 192 = 1.536 MB
    out = 8_000 * 192 * 1.00000033
    stream = 192 * 0.0040 + out * 2.38103186e-12 * 8 / 1.5 + out * 9.00549092e-10 / 1.5 + out / 125e6
    client = out * 3.72246297e-10 + 192 * 0.0001
    got = estimate(example(batch_size=192), 4)
    assert got.stream == pytest.approx(stream, rel=1e-9)
    assert got.client == pytest.approx(client, rel=1e-9)


def test_the_number_of_samples_is_the_profiles_or_told_or_the_published_one() -> None:
    pace = estimate(example(), 3)
    slope = max(pace.stream, pace.client) + pace.not_parallel
    assert estimate(example(), 3, samples=30_720).total == pytest.approx(pace.total - slope * 20)
    assert estimate(example(samples=0), 3).total == estimate(example(), 3, samples=30_720).total


def test_the_winner_has_the_least_estimate_and_may_not_be_split_0_or_1() -> None:
    profile = example()
    totals = [estimate(profile, split).total for split in range(5)]
    assert totals.index(min(totals)) == 3
    assert choose_paper(profile)[0] == 3
    # make split 1 the best by far: it stays banned
    rows = [ROWS[0], (10, 0.0, 0.0), *ROWS[2:]]
    banned = profile_of(*rows, bits_per_s=1e9, samples=51_200, batch_size=1024)
    assert min(range(5), key=lambda split: estimate(banned, split).total) == 1
    assert choose_paper(banned)[0] == 3


def test_splits_out_of_client_memory_are_skipped_and_the_freeze_index_is_the_last_resort() -> None:
    profile = example(weight_bytes=1000)
    # client = B (out[split] + largest neighbours) + model
    assert client_memory(profile, 3) == 1024 * (200_000 + 208_000) + 1000
    assert client_memory(profile, 2) == 1024 * (400_000 + 600_000) + 1000
    assert client_memory(profile, 4) == 1024 * (8_000 + 8_000) + 1000
    assert client_memory(profile, 0) == 1024 * (602_112 + 1_402_112) + 1000
    tight = replace(profile, client_memory_bytes=300_000_000)
    assert choose_paper(tight)[0] == 4
    assert choose_paper(replace(profile, client_memory_bytes=1))[0] == 4


def test_the_published_memory_limit_holds_without_another() -> None:
    profile = example()
    limit = 15109 * 2**20
    at_limit = replace(profile, weight_bytes=limit - int(client_memory(profile, 3)))
    assert choose_paper(at_limit)[0] != 3
    assert choose_paper(replace(at_limit, weight_bytes=at_limit.weight_bytes - 1))[0] == 3


def test_it_falls_back_to_the_baseline_when_that_would_be_faster() -> None:
    rows = [(110_000, 0.0, 0.0001), *ROWS[1:]]
    split, notes = choose_paper(profile_of(*rows, bits_per_s=1e9, samples=51_200, batch_size=1024))
    assert split == 0
    assert "falls back" in notes[0]


def test_v1_memory_by_hand() -> None:
    server, client, vanilla = memory_v1(example(weight_bytes=7), 2)
    assert server == 25 * (602_112 + 800_000 + 400_000) + 7
    assert client == 1024 * (200_000 + 200_000 + 8_000) + 7
    assert vanilla == 1024 * (602_112 + 800_000 + 400_000 + 200_000 + 8_000) + 7
    assert memory_v1(example(weight_bytes=7), 4)[1] == 1024 * 8_000 + 7


def test_v1_takes_the_earliest_candidate_that_saves_memory() -> None:
    # below 602112 / 4.5 = 133803 bytes: cut2 and later; at 1 Gbit/s all ship fast enough
    rows = (ROWS[0], ROWS[1], (133_000, 0.0015, 0.0030), (100_000, 0.0020, 0.0020), ROWS[4])
    profile = profile_of(*rows, bits_per_s=1e9, samples=51_200, batch_size=1024)
    assert choose_paper_v1(profile)[0] == 2
    over = profile_of(*rows[:2], (133_804, 0.0015, 0.0030), *rows[3:], bits_per_s=1e9, batch_size=1024)
    assert choose_paper_v1(over)[0] == 3


def test_v1_wants_communication_hidden_behind_the_rest_of_the_client_computation() -> None:
    # cut2 ships 133 kB: the client needs 4 ms from layer 1 on, so 266 Mbit/s is the least rate
    rows = (ROWS[0], ROWS[1], (133_000, 0.0015, 0.0030), (100_000, 0.0020, 0.0020), ROWS[4])
    enough, scarce = (profile_of(*rows, bits_per_s=rate, batch_size=1024) for rate in (266.1e6, 265.9e6))
    assert choose_paper_v1(enough)[0] == 2
    assert choose_paper_v1(scarce)[0] == 4  # cut3: 100 kB in 3 ms needs 266.7 Mbit/s as well
    assert choose_paper_v1(profile_of(*rows, bits_per_s=1e3, batch_size=1024))[0] == 4  # no candidate: freeze index


def test_v1_takes_the_last_candidate_tried_when_none_saves_memory() -> None:
    rows = (ROWS[0], ROWS[1], (133_000, 0.0015, 0.0030), (100_000, 0.0020, 0.0020), ROWS[4])
    heavy = profile_of(*rows, bits_per_s=1e9, batch_size=1024, weight_bytes=10**12)
    assert choose_paper_v1(heavy)[0] == 4


def test_the_policies_go_through_the_planner() -> None:
    made = plan(example(), "paper")
    assert [(cut.name, cut.share) for cut in made.cuts] == [("cut3", 1.0)]
    assert "published rule" in made.reasons[0]
    assert [cut.name for cut in plan(example(), "paper-v1").cuts] == ["output"]
    with pytest.raises(ProfileError, match="link"):
        plan(replace(example(), link=None), "paper")
    for rule in (choose_paper, choose_paper_v1):
        with pytest.raises(ProfileError, match="bandwidth"):
            rule(replace(example(), link=None))
