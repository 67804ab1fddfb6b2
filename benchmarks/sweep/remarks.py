"""How the sweep measures, in the words that stand beside its results."""

from __future__ import annotations

from benchmarks.sweep.cases import CLOSE, FAR, FIRST, HOPELESS, MOST_RIVALS, MOST_SECONDS, SUSPECT, WEIGHT
from benchmarks.sweep.uncertainty import SURE
from benchmarks.testbed.others import DISTURBED, TRIES
from compute_client.streams.pace import LEAST_FILLS
from profiler import calibration
from profiler.measuring import CPU_BATCH

PAYLOAD = 1448 / 1514
"""Of an Ethernet frame of 1500 bytes, what is neither its header nor IP's nor TCP's (with time stamps): the shaper
counts frames, the planner bytes of features."""


def remarks(watched_seconds: float, turns: int, rounds: int, *, is_shaped: bool) -> list[str]:
    """What a reader must know.

    Args:
        turns: how often streams are watched for the profile before each bandwidth.
        rounds: how often streams on which a verdict depends are read again.
        is_shaped: the link counts frames.
    """
    anew = (
        "; before each bandwidth both ends, and the cuts that are then predicted to take at most "
        f"{CLOSE:g} times as long as the best, are watched {turns} times more (less often if that takes more than "
        f"{calibration.MOST_SECONDS:g} s); the median counts, {WEIGHT:g} beside "
        f"{1 - WEIGHT:g} of what the profile had, and so does, over slower links, what was then measured of a cut that "
        "the link did not hold up"
    )
    often = "once" if rounds == 1 else f"{rounds} times"
    frames = f", {100 * PAYLOAD:.1f} % of the set rate: what frames leave for data" if is_shaped else ""
    return [
        "seconds are per sample of a steady stream through the DataLoader, head training included, features neither "
        "compressed nor kept anywhere; both tiers run eager engines, so that no compiling in the background disturbs, "
        f"and the server takes at most {CPU_BATCH} samples at once, as in its profile: how it finds larger batches is "
        "no matter of cuts, and takes hundreds of samples of each",
        "the profile is of either tier alone, and then of streams over each cut that could be the best, both tiers at "
        f"work, over a link that is not shaped: as `hapi profile --streams`, but watched once{anew if turns else ''}",
        f"the planner is told the bandwidth{frames}; the limit is the linear program's over the measured profile",
        f"a reading is {watched_seconds:g} s of a stream after its pipeline had filled, or longer, until all that "
        f"fills it was replaced {LEAST_FILLS:g} times; each stream has one at first, "
        f"{FIRST * watched_seconds:g} s long, which no longer counts when it has others, and is made twice where it is "
        f"{SUSPECT:g} times slower than predicted; "
        f"cuts known to be {HOPELESS:g} times slower than the best are given up, and choices known to be {FAR:g} times "
        "slower: they are at least so slow, and so is a cut whose bytes alone take the link as long",
        f"a choice is near the best if it takes at most 5 % longer than any cut; where that is not {SURE:g} standard "
        f"errors away from either answer, the choice and the {MOST_RIVALS} fastest cuts that leave it open are read "
        f"again in turns, {often} and for {MOST_SECONDS:g} s at most; `is_near` says yes, no or open, `ratio_error` "
        "the standard error of the ratio, from how much readings of one stream differ (of all at that bandwidth)",
        "the best cut's seconds are told by the half of its readings that did not choose it, where the other half "
        "would choose another: the least of several noisy means is too small",
        f"where others had more than {100 * DISTURBED:.0f} % of a host's processors a stream was watched again, and a "
        f"network profiled again, {TRIES} times at most: the least disturbed try counts, and `others` of a reading in "
        "the JSON tells, `low` of work at a low priority, which was let be",
        "a cut that no policy chose, and whose bytes the link carries in a third of the time that the cut took over a "
        "faster link, counts as measured there, unless it would be the best or leaves a choice open: then it was "
        "watched at this link, too",
    ]
