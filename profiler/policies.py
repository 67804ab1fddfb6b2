"""How to choose: each policy takes a pipeline and answers the share of the samples that each cut gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from hapi.errors import InputError
from hapi.plan import INPUT, OUTPUT
from profiler.paper import choose_paper, choose_paper_v1
from profiler.pipeline import WORTH, Pipeline

TINY_SHARE = 0.01
"""Cuts that would get less than this part of the samples are not worth another prefix on the server."""
LEAST_GAIN = 0.03
"""Part of the best single cut's time that a mix must save: costs are not known any better than that, and a mix needs
another prefix on the server."""
TIE = 0.01
"""Cuts whose predicted times differ by no more than this part are equals: costs are not known any better. Of equals the
one is taken that ships the fewest bytes, as a link is often shared with others."""
MOST_GIVEN = 0.05
"""Part of the least predicted time that a mix may take longer, where that spares the link WORTH times as much. A mix
still saves LEAST_GAIN of the best single cut's time."""
ROUNDING = 1e-6
"""Of a solver's optimum, as a part of it."""
MOST_CUTS = 3
"""Of a mix: as many as there are resources."""
HOPELESS = 1e6
"""A cut so many times slower than the best one can take less than a millionth of the samples: it is left out, since
coefficients that far apart are beyond a solver's precision."""


@dataclass(frozen=True)
class Choice:
    """Shares per cut, summing to 1, and what the rule itself has to say."""

    shares: np.ndarray
    notes: tuple[str, ...] = ()


def choose_single(pipeline: Pipeline) -> Choice:
    """The one cut with the least predicted time among those that fit; of equals (TIE), the one that ships least."""
    times = _times(pipeline)
    enough = min(times.values()) * (1 + TIE)
    equals = [index for index, seconds in times.items() if seconds <= enough]
    return Choice(pipeline.unit(min(equals, key=lambda index: (pipeline.columns[index].out_bytes, times[index]))))


def choose_mix(pipeline: Pipeline) -> Choice:
    """The mix of cuts with the least predicted time; the best single cut, so never worse than none, unless it gains.

    Some of the time that it gains is given to spare the link (MOST_GIVEN, WORTH). A cut's features travel in one way
    only: where the optimum has a cut in two, the one with the larger share stays.
    """
    candidates, times = _fitting(pipeline), _times(pipeline)
    enough = min(times.values()) * (1 - LEAST_GAIN)
    for shares in _mixes(pipeline, candidates, enough):
        kept = np.where(shares >= TINY_SHARE, shares, 0.0)
        mixed = Choice(kept / kept.sum())
        if pipeline.seconds(mixed.shares) < enough:
            return mixed
    return choose_single(pipeline)


def _mixes(pipeline: Pipeline, candidates: list[int], enough: float) -> Iterator[np.ndarray]:
    """That which spares the link and takes at most `enough` seconds, if there is one, and the fastest."""
    for is_sparing in (True, False):
        able = candidates
        while True:  # at most once per cut
            shares = solve(pipeline, able, first_samples=pipeline.first_samples)
            if is_sparing:
                shares = _sparing(pipeline, able, shares, enough)
            rivals = _rivals(pipeline, shares)
            if not rivals:
                break
            able = [index for index in able if index not in rivals]
        yield shares


def _sparing(pipeline: Pipeline, candidates: list[int], fastest: np.ndarray, enough: float) -> np.ndarray:
    """What spares the link and takes little longer, also over all epochs, which programs do not see; or the fastest."""
    seconds = pipeline.seconds(fastest)
    most = min(seconds * (1 + MOST_GIVEN), enough)
    if most <= seconds:
        return fastest
    shares = solve(pipeline, candidates, first_samples=pipeline.first_samples, given=most / seconds - 1)
    return shares if pipeline.seconds(shares) <= (1 + ROUNDING) * most else fastest


def limit_shares(pipeline: Pipeline) -> np.ndarray:
    """The mix with the highest steady rate over all cuts and ways, whatever memory they need: the bound to report."""
    return solve(pipeline, list(range(len(pipeline.columns))), first_samples=0)


def solve(pipeline: Pipeline, candidates: list[int], *, first_samples: int, given: float = 0.0) -> np.ndarray:
    """The linear program: shares x of the candidate cuts and pace t (seconds per sample of the busiest resource) that

        minimise  (n - b) t + b sum_c x_c (server_c + link_c + client_c)
        subject to  sum_c x_c cost_rc <= t for each resource r,  sum_c x_c = 1,  x >= 0

    with n samples per epoch, of which the first b pass one resource after the other. With b = 0 that is the highest
    steady rate 1/t. A vertex of this polytope has at most three cuts.

    With `given` a second program follows: among the mixes whose objective is at most 1 + given times the least, that
    which minimises the link's seconds and WORTH times the objective. So a second is given only for WORTH seconds of the
    link. Of its optimum with more than three cuts, which its further row allows, nothing is taken.
    """
    paces = pipeline.costs[:, candidates].max(axis=0)
    shares = np.zeros(pipeline.costs.shape[1])
    if paces.min() == 0.0:  # a cut that costs nothing
        shares[candidates[int(paces.argmin())]] = 1.0
        return shares
    candidates = [cut for cut, pace in zip(candidates, paces, strict=True) if pace <= HOPELESS * paces.min()]
    # the optimum is then between 1/3 and 1, where the solver's tolerances are meant
    costs = pipeline.costs[:, candidates] / paces.min()
    start = first_samples / pipeline.samples
    objective = np.append(start * costs.sum(axis=0), 1.0 - start)
    within = np.hstack([costs, -np.ones((3, 1))])
    least, found = _optimum(objective, within, np.zeros(3))
    if given:
        rows, bounds = np.vstack([within, objective]), np.append(np.zeros(3), least * (1 + given))
        _, smaller = _optimum(np.append(costs[1], 0.0) + WORTH * objective, rows, bounds)
        found = smaller if np.count_nonzero(smaller) <= MOST_CUTS else found
    shares[candidates] = found / found.sum()
    return shares


def _optimum(objective: np.ndarray, within: np.ndarray, bounds: np.ndarray) -> tuple[float, np.ndarray]:
    """The least value of the objective, and the shares (all variables but the last) at which it is reached."""
    result = linprog(
        c=objective,
        A_ub=within,
        b_ub=bounds,
        A_eq=np.append(np.ones(len(objective) - 1), 0.0)[None, :],
        b_eq=[1.0],
        bounds=(0.0, None),
        method="highs-ds",
    )
    if not result.success:
        raise RuntimeError(f"the linear program of the planner failed: {result.message}")
    return float(result.fun), np.clip(result.x[:-1], 0.0, None)


POLICIES: dict[str, Callable[[Pipeline], Choice]] = {
    "none": lambda pipeline: Choice(pipeline.only(INPUT)),
    "all": lambda pipeline: Choice(pipeline.only(OUTPUT)),
    "paper": lambda pipeline: _by_rule(pipeline, *choose_paper(pipeline.profile)),
    "paper-v1": lambda pipeline: _by_rule(pipeline, *choose_paper_v1(pipeline.profile)),
    "single": choose_single,
    "mix": choose_mix,
}
"""By name. Any other name is taken for a cut's."""


def _by_rule(pipeline: Pipeline, split: int, notes: tuple[str, ...]) -> Choice:
    return Choice(pipeline.only(pipeline.profile.cuts[split].name), notes)


def _rivals(pipeline: Pipeline, shares: np.ndarray) -> set[int]:
    """All columns of the cuts that are in the mix in several ways, but for that with the largest share."""
    used = [int(index) for index in np.flatnonzero(shares)]
    names = pipeline.names
    doubled = {names[index] for index in used if [names[other] for other in used].count(names[index]) > 1}
    kept = {max((index for index in used if names[index] == name), key=lambda index: shares[index]) for name in doubled}
    return {index for index, name in enumerate(names) if name in doubled} - kept


def _times(pipeline: Pipeline) -> dict[int, float]:
    """Column -> predicted seconds of the job if every sample takes it, for those whose cuts fit."""
    return {index: pipeline.seconds(pipeline.unit(index)) for index in _fitting(pipeline)}


def _fitting(pipeline: Pipeline) -> list[int]:
    misfits = pipeline.misfits()
    fitting = [index for index, name in enumerate(pipeline.names) if name not in misfits]
    if not fitting:
        raise InputError(
            f"no cut of {pipeline.profile.model!r} fits in memory: {next(iter(misfits.values()))}. "
            "Use a smaller batch or raise the memory budget."
        )
    return fitting
