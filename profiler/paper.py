"""The published rules for choosing the split, as baselines: SoCC'24 (`paper`) and its first version (`paper-v1`).

Both were published as code: github.com/aguirguis/collabml_client, application_layer/utils.py, `choose_split_idx`,
branch `sc24` (final) and branch `main` (v1). Constants are the authors'. A profile has per-sample sums where the
originals have per-layer times, so layer l is what lies between cut l and cut l + 1, split s is cut number s, and the
freeze index is the last cut (a backbone is frozen throughout). What else had to be derived is said at each rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from hapi.errors import ProfileError
from hapi.plan import Profile

MIB = 2**20
INPUT_TENSOR_BYTES = 3 * 224 * 224 * 4
V1_STORED_RATIO = 4.5
"""v1: "the actual average ImageNet size is 4.5X less than the theoretical one"."""
V1_SERVER_BATCH = 25
"""v1: SERVER_BATCH, the batch for which the server's memory is estimated."""

CLIENT_LIMIT_BYTES = 15109 * MIB
"""v3: client memory estimates at or above this are out-of-memory (a 16 GB GPU)."""
PUBLISHED_SAMPLES = 30720
SAMPLES_PER_REQUEST = 128
REQUESTS_AT_ONCE = 4
SERIALISED_SIZE = 1.00000033
LARGE_OUTPUT_BYTES = 4e8
COPY_TO_HOST, COPY_TO_HOST_LARGE = 2.38103186e-12, 7.52775484e-12
"""v3, seconds per byte and inference of moving the output off the server's GPU."""
PICKLE, UNPICKLE, BUILD_DATASET = 9.00549092e-10, 4.76287825e-10, 4.57389807e-10
DATALOADER, COPY_TO_DEVICE = 1.0190668e-10, 2.70339617e-10
"""v3, seconds per byte."""
BANNED_SPLITS = (0, 1)


@dataclass(frozen=True)
class PaperEstimate:
    """The v3 estimate of one split, in seconds: of one iteration its streaming, its client part and what is never
    overlapped; and of the whole job.
    """

    stream: float
    client: float
    not_parallel: float
    total: float
    sequential: float
    """The job without overlap (the authors' "nsg")."""


def estimate(profile: Profile, split: int, *, samples: int | None = None) -> PaperEstimate:
    """T(s) of the SoCC'24 rule for `split` = index of a cut; ProfileError without a link.

    With W = ceil(B/512) waves of 4 requests of 128 samples, par = min(4, B/128), k = k0 8 W and out = bytes of a batch:

        S = W [stages + sum_{l<s} server_fwd + out k/(W par) + out pickle/(W par) + out/(W par bw)]
        C = out (dataloader + copy) + sum_{l>=s} client_fwd + backward
        P = out (unpickle + build)
        T = S + (max(S, C) + P)(N/B - 1) + P + C

    Derived: stages and server_fwd of one wave = min(B, 512) x server_seconds (reading included); client_fwd and
    backward = B x client_seconds; bw is the rate of one of `par` flows that share the link; N = `samples`, else the
    profile's, else the 30720 that the authors fixed. Split 0, the baseline, ships stored objects and is neither pickled
    nor unpickled.
    """
    if profile.link is None:
        raise ProfileError(f"profile of {profile.model!r}: the paper's rule needs the link's bandwidth.")
    batch = profile.batch_size
    cut = profile.cuts[split]
    per_wave = SAMPLES_PER_REQUEST * REQUESTS_AT_ONCE
    waves = ceil(batch / per_wave)
    parallel = min(REQUESTS_AT_ONCE, batch / SAMPLES_PER_REQUEST)
    flow_bytes_per_s = profile.link.bandwidth_bits_per_s / 8 / parallel
    out = cut.out_bytes * batch
    if split == 0:
        copy = pickle = not_parallel = client_copies = 0.0
    else:
        out *= SERIALISED_SIZE
        copy = (COPY_TO_HOST if out < LARGE_OUTPUT_BYTES else COPY_TO_HOST_LARGE) * 8 * waves
        pickle = PICKLE
        not_parallel = out * UNPICKLE + out * BUILD_DATASET
        client_copies = out * DATALOADER + out * COPY_TO_DEVICE
    part = out / (waves * parallel)
    stages = min(batch, per_wave) * cut.server_seconds
    stream = waves * (stages + part * copy + part * pickle + part / flow_bytes_per_s)
    client = client_copies + batch * cut.client_seconds
    iterations = (samples or profile.samples or PUBLISHED_SAMPLES) / batch
    total = stream + (max(stream, client) + not_parallel) * (iterations - 1) + not_parallel + client
    return PaperEstimate(stream, client, not_parallel, total, (stream + client + not_parallel) * iterations)


def client_memory(profile: Profile, split: int) -> float:
    """The v3 estimate of the client's bytes: B (out[split] + largest two neighbouring outputs) + model.

    The authors add a difference measured at batch 1, overridden by per-model constants, zero for most; here it is 0.
    """
    outputs = [profile.cuts[split].out_bytes, *(cut.out_bytes for cut in profile.cuts[split + 1 :])]
    if split == 0:
        outputs[0] = INPUT_TENSOR_BYTES
    neighbours = [first + second for first, second in pairwise(outputs)] or [outputs[0]]
    return profile.batch_size * (outputs[0] + max(neighbours)) + profile.weight_bytes


def choose_paper(profile: Profile, *, samples: int | None = None) -> tuple[int, tuple[str, ...]]:
    """The SoCC'24 rule: least T(s) among splits that do not run out of client memory; splits 0 and 1 are banned.

    If all are out, the freeze index. If the baseline (split 0) would take less than the winner, the baseline: the
    authors compare with its measured time, which is here its T. The memory limit is the profile's
    `client_memory_bytes`, else the authors' 15109 MB. Answers the cut's index and notes.
    """
    freeze = len(profile.cuts) - 1
    limit = CLIENT_LIMIT_BYTES if profile.client_memory_bytes is None else profile.client_memory_bytes
    totals = {split: estimate(profile, split, samples=samples).total for split in range(freeze + 1)}
    order = sorted(range(1, freeze + 1), key=lambda split: totals[split])
    winner = next((s for s in order if s not in BANNED_SPLITS and client_memory(profile, s) < limit), freeze)
    note = f"the published rule estimates {totals[winner]:.4g} s at {profile.cuts[winner].name}"
    if totals[0] < totals[winner]:
        return 0, (f"{note}, more than {totals[0]:.4g} s without pushdown, so it falls back to that",)
    return winner, (f"{note}, and {totals[0]:.4g} s without pushdown",)


def memory_v1(profile: Profile, split: int) -> tuple[float, float, float]:
    """The v1 estimates in bytes: server, client, and the client without a split.

        server  = b (input + sum_{l<split} out) + model        b = 25
        client  = B (out[split] + sum_{split<=l<freeze} out + 2 sum_{l>=freeze} out) + model
        vanilla = B (input + sum_{l<freeze} out + 2 sum_{l>=freeze} out) + model

    Derived: layers after the freeze index (the head) are not in a profile, so their sum is 0 and out[freeze] is the
    backbone's output; input is the authors' 3 x 224 x 224 float32.
    """
    outputs = [cut.out_bytes for cut in profile.cuts[1:]]
    batch, model = profile.batch_size, profile.weight_bytes
    server = V1_SERVER_BATCH * (INPUT_TENSOR_BYTES + sum(outputs[:split])) + model
    client = batch * (outputs[min(split, len(outputs) - 1)] + sum(outputs[split:])) + model
    return server, client, batch * (INPUT_TENSOR_BYTES + sum(outputs)) + model


def choose_paper_v1(profile: Profile) -> tuple[int, tuple[str, ...]]:
    """The first published rule: the earliest layer whose output is smaller than the input, takes no longer to ship than
    the client needs for the rest, and saves memory in total.

    Candidates i: out[i] < 3*224*224*4/4.5 and out[i] B / bw <= sum_{j>=i} t[j]; the winner is the first for which
    server + client memory < vanilla, else the last one tried; without candidates the freeze index. Derived:
    sum_{j>=i} t[j] is B x client_seconds at cut i, as the original's sum also runs over the layers after the freeze
    index.
    """
    if profile.link is None:
        raise ProfileError(f"profile of {profile.model!r}: the paper's rule needs the link's bandwidth.")
    freeze = len(profile.cuts) - 1
    bandwidth = profile.link.bandwidth_bits_per_s / 8
    smallest = INPUT_TENSOR_BYTES / V1_STORED_RATIO
    candidates = [
        split
        for split in range(1, freeze + 1)
        if profile.cuts[split].out_bytes < smallest
        and profile.cuts[split].out_bytes * profile.batch_size / bandwidth
        <= profile.batch_size * profile.cuts[split - 1].client_seconds
    ]
    winner = freeze
    for split in candidates:
        winner = split
        server, client, vanilla = memory_v1(profile, split)
        if server + client < vanilla:
            break
    counted = f"{len(candidates)} of {freeze} cuts" if candidates else "no cut"
    return winner, (
        f"the first published rule finds {counted} smaller than {smallest:.0f} bytes and shipped no slower than the "
        f"client would compute, and takes {profile.cuts[winner].name}",
    )
