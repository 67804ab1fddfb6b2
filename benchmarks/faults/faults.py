"""The faults: what is done to a training in its middle, and how it must end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.baselines.systems import PLAIN
from benchmarks.e2e.judgement import AGREEMENT, loss_difference
from benchmarks.faults.lab import END_SECONDS, OURS, START_SECONDS, TENANTS, Lab, wait
from benchmarks.faults.training import Ended, Training
from benchmarks.testbed.processes import ProgramFailedError

AWAY_SECONDS = 3.0
PATIENCE_SECONDS, SLACK_SECONDS = 4.0, 15.0
"""Of the client whose server never returns; and how long after that it must have ended."""
TRICKLE_BITS_PER_S, TRICKLE_SECONDS = 1e5, 5.0
STOPPED_SECONDS = 4.0
MANY_EPOCHS = 1000
"""Of a tenant that does not live to see its end."""
HUNG_SECONDS = 90.0
"""After which a training of others is ended, counted from the end of the fault."""
HUNG = 124
"""The exit status of such a one, as of the command `timeout`."""
BOTH, ALONE = (OURS, PLAIN), (OURS,)


@dataclass(frozen=True)
class Fault:
    """`run` disturbs a training of a system and answers the values of its row."""

    name: str
    run: Callable[[Lab, str], dict[str, Any]]
    systems: tuple[str, ...] = ALONE


def undisturbed(lab: Lab, system: str) -> dict[str, Any]:
    """What the others are held against."""
    with lab.training(system) as training:
        ended = end_of(training, system)
    if ended.status:
        return {"failed": True, "survived": False, "note": ended.words}
    lab.undisturbed[system] = ended
    return outcome(ended, ended)


def server_returns(lab: Lab, system: str) -> dict[str, Any]:
    """Killed in mid-epoch, started again after some seconds."""
    with lab.training(system) as training:
        lab.until_middle(training)
        lab.server.kill()
        wait(AWAY_SECONDS)
        lab.server.start()
        return survived(lab, system, end_of(training, system))


def server_gone(lab: Lab, system: str) -> dict[str, Any]:
    """Killed and never seen again: the client must say so, and end with 1, when its patience is over."""
    try:
        with lab.training(system, retry_seconds=PATIENCE_SECONDS) as training:
            lab.until_middle(training)
            lab.server.kill()
            killed = time.monotonic()
            ended = training.end(PATIENCE_SECONDS + SLACK_SECONDS)
            taken = time.monotonic() - killed
    finally:
        lab.server.start()
    is_told = ended.status == 1 and lab.server.url in ended.words
    told = f"ended with {ended.status} after {taken:.1f} s: {ended.words}"
    return {"exit_status": ended.status, "end_seconds": taken, "failed": not is_told, "note": told}


def server_done_without(lab: Lab, system: str) -> dict[str, Any]:
    """Killed and never seen again, with leave to go on without it: as if nothing had happened, but for time."""
    try:
        with lab.training(system, retry_seconds=PATIENCE_SECONDS, fallback=True) as training:
            lab.until_middle(training)
            lab.server.kill()
            ended = end_of(training, system)
    finally:
        lab.server.start()
    values = survived(lab, system, ended)
    changes = [change["reason"] for change in (ended.document.get("plan") or {}).get("history", [])]
    if "failed" in values or any("given up" in reason for reason in changes):
        return values
    return {**values, "failed": True, "note": "its plan does not tell that the server was given up"}


def link_trickles(lab: Lab, system: str) -> dict[str, Any]:
    """Nearly nothing passes for some seconds."""
    with lab.training(system) as training:
        lab.until_middle(training)
        try:
            lab.bed.link.shape(TRICKLE_BITS_PER_S)
            wait(TRICKLE_SECONDS)
        finally:
            lab.bed.link.shape(lab.rate)
        return survived(lab, system, end_of(training, system))


def store_stops(lab: Lab, system: str) -> dict[str, Any]:
    """The S3 store answers nothing for some seconds."""
    with lab.training(system) as training:
        lab.until_middle(training)
        with lab.store_stopped():
            wait(STOPPED_SECONDS)
        return survived(lab, system, end_of(training, system))


def objects_bad(lab: Lab, system: str) -> dict[str, Any]:
    """An object deleted and another replaced by no picture, after they were listed: only these two may be lost.

    They may have been read in the first epoch, in later ones they must fail. `plain` has no way to leave samples out.
    """
    pictures = lab.pictures()
    with lab.bad_objects() as bad, lab.training(system, skip_errors=True) as training:
        training.until(1, lab.task.whole, START_SECONDS)  # listed
        bad.lose(pictures[len(pictures) // 3])
        bad.damage(pictures[2 * len(pictures) // 3])
        ended = end_of(training, system)
    if system == PLAIN:
        return stood(lab, system, ended)
    lost = ended.document.get("failed_samples", 0)
    least, most = 2 * (lab.task.epochs - 1), 2 * lab.task.epochs
    values = {**outcome(ended, None), "failed_samples": lost, "survived": ended.status == 0}
    if ended.status or not least <= lost <= most:
        return {**values, "failed": True, "note": ended.words or f"{lost} samples were left out, not {least} to {most}"}
    return {**values, "note": f"left out: 2 samples, in {lost} readings; losses are those of the others"}


def object_bad_told(lab: Lab, system: str) -> dict[str, Any]:
    """The same without leave to skip: the training must end with an error that names the object."""
    picture = lab.pictures()[len(lab.pictures()) // 2]
    with lab.bad_objects() as bad, lab.training(system) as training:
        training.until(1, lab.task.whole, START_SECONDS)
        bad.lose(picture)
        ended = end_of(training, system)
    is_told = ended.status in (1, 2) and picture.name in ended.words
    told = f"ended with {ended.status}: {ended.words}"
    return {"exit_status": ended.status, "failed": not is_told, "note": told}


def tenant_killed(lab: Lab, system: str) -> dict[str, Any]:
    """Two train at once on one server; one is killed, and the other must not notice but for the time they shared."""
    with lab.training(system, tenant=TENANTS[1], epochs=MANY_EPOCHS) as leaving, lab.training(system) as staying:
        leaving.until(1, lab.task.whole, START_SECONDS)
        lab.until_middle(staying)
        leaving.kill()
        return survived(lab, system, end_of(staying, system))


FAULTS = (
    Fault("none", undisturbed, BOTH),
    Fault("server killed, back after 3 s", server_returns),
    Fault("server killed for good", server_gone),
    Fault("server gone, with --fallback", server_done_without),
    Fault("link at 100 kbit/s for 5 s", link_trickles, BOTH),
    Fault("store stopped for 4 s", store_stops, BOTH),
    Fault("two objects lost or damaged", objects_bad, BOTH),
    Fault("object lost, not to be skipped", object_bad_told),
    Fault("other tenant killed", tenant_killed),
)
QUICK = ("none", "server killed, back after 3 s", "server killed for good", "store stopped for 4 s",
         "two objects lost or damaged")  # fmt: skip
"""Those of --quick, with ours only."""


def end_of(training: Training, system: str) -> Ended:
    """Waits for the end. A training of ours that hangs is a ProgramFailedError; another's is what is to be told."""
    if system != PLAIN:
        return training.end(END_SECONDS)
    try:
        return training.end(HUNG_SECONDS)
    except ProgramFailedError as error:
        return Ended(HUNG, words=str(error))


def survived(lab: Lab, system: str, ended: Ended) -> dict[str, Any]:
    """The values of a training that must end as if nothing had happened, but for time; ours failed if it did not."""
    values = stood(lab, system, ended)
    difference = values.get("loss_difference")
    is_kept = ended.status == 0 and difference is not None and difference <= AGREEMENT
    if system == PLAIN or is_kept:
        return values
    told = ended.words or f"losses differ by {difference} (relative)"
    return {**values, "failed": True, "note": told}


def stood(lab: Lab, system: str, ended: Ended) -> dict[str, Any]:
    """The same for whoever promises nothing."""
    values = {**outcome(ended, lab.undisturbed.get(system)), "survived": ended.status == 0}
    return values if ended.status == 0 else {**values, "note": f"ended with {ended.status}: {ended.words}"}


def outcome(ended: Ended, before: Ended | None) -> dict[str, Any]:
    """What a training's document says, and how that differs from the undisturbed one's."""
    document = ended.document
    values: dict[str, Any] = {"exit_status": ended.status, "survived": ended.status == 0, "seconds": ended.seconds}
    values |= {key: document.get(key) for key in ("retries", "failed_samples", "losses")}
    values |= {"cuts": (document.get("plan") or {}).get("cuts")}
    if before is not None and before.seconds is not None and ended.seconds is not None:
        values["lost_seconds"] = ended.seconds - before.seconds
        values["loss_difference"] = loss_difference(ended.losses, before.losses)
    return values
