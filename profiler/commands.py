"""`hapi plan` and `hapi top`, and how a profile is shown."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from hapi.console import console, emit, say
from hapi.errors import InputError, ProfileError
from hapi.units import format_bandwidth, parse_bandwidth

if TYPE_CHECKING:
    from hapi.plan import Plan, Profile

ASSUMED_BITS_PER_S = 1e9
"""The link for which a profile without one is explained; said aloud, and not written into the profile."""
WIDE_COLUMNS = 105
"""Width of a terminal in which the whole table can be read."""
MAX_PROFILE_BYTES = 64 * 2**20
LOCAL_SERVER = "http://127.0.0.1:8470"
"""Where `hapi serve` listens unless it is told otherwise."""

_JSON = typer.Option(False, "--json", help="One JSON document on standard output; the rest on standard error.")
BANDWIDTH = typer.Option(None, help="Of the link, as in 300mbit or 1Gbit; default: what the file says.")
EPOCHS = typer.Option(None, min=1, help="Passes over the data.")


def register(app: typer.Typer) -> None:
    """Adds this room's commands to `app`."""
    app.command("plan")(plan_command)
    app.command("top")(top_command)


def plan_command(
    file: Path = typer.Argument(metavar="PROFILE.json", help="What hapi profile --json printed, or your own."),
    bandwidth: str | None = BANDWIDTH,
    policy: str = typer.Option("mix", help="mix, single, none, all, paper, paper-v1, or the name of a cut."),
    batch_size: int | None = typer.Option(None, min=1, help="Of the training; default: what the file says."),
    epochs: int | None = EPOCHS,
    as_json: bool = _JSON,
) -> None:
    """Decide where to cut, from a profile: which part of the samples takes which cut, and why.

    The profile is what `hapi profile --json` prints, or a JSON object of your own measurements, all per sample:

    input_bytes, the mean size of a stored object; and cuts, a list in the order of the network, the first named input
    (nothing pushed down), the last output (all). Each cut needs name, out_bytes (on the link; at input the stored
    object's), server_seconds (the whole prefix, reading and decoding included) and client_seconds (all that is left,
    head training included). It may have server_bytes_per_sample and client_bytes_per_sample (peak memory of either
    part), flops, and wire: ways in which its features may travel, each an object of codec, compression, out_bytes,
    server_seconds and client_seconds.

    Optional are model; samples of an epoch (without it, one sample of an endless epoch is planned); batch_size (256);
    epochs (1); link, an object of bandwidth_bits_per_s and latency_seconds (or give --bandwidth); server_memory_bytes
    and client_memory_bytes: cuts that need more are left out, where the server needs one sample at a time, the client a
    training batch, and either weight_bytes; server_fits_to, the deepest cut that the server can run; kept_share and
    head_seconds: the part of the features that the client keeps for later epochs, and what those then cost; and
    details, which nobody reads.

    With --json the answer is an object of policy, cuts (name and share), predicted_seconds and limit_seconds (of the
    whole job: no split of it can be faster), and reasons.
    """
    from hapi.plan import Profile, unknown_fields

    text = _read(file)
    loaded = Profile.loads(text)
    if unknown := unknown_fields(text):
        say(console(as_json), f"Not known, and not used: {escape(', '.join(unknown))}. Is that spelt as --help says?")
    rate = None if bandwidth is None else parse_bandwidth(bandwidth)
    from profiler import plan

    chosen = plan(loaded, policy, bandwidth=rate, batch_size=batch_size, epochs=epochs)
    if as_json:
        emit(chosen.to_json())
    else:
        _explain(console(), chosen)


def top_command(
    server: str = typer.Option(LOCAL_SERVER, help="A storage server's address."),
    token: str | None = typer.Option(None, help="For the server; default: the environment's HAPI_TOKEN."),
    interval: float = typer.Option(2.0, min=0.1, max=3600, help="Seconds between two looks."),
    once: bool = typer.Option(False, "--once", help="Look once and print; so it is, too, where there is no terminal."),
    as_json: bool = _JSON,
) -> None:
    """Watch a storage server at work: memory, batches and why they have their size, tenants. Ctrl-C leaves.

    A tenant sees itself and the others together; an operator's token, or a server without tokens, shows all.
    """
    from hapi.backoff import RetryPolicy
    from profiler.remote import ServerClient, Timeouts
    from profiler.top import View, Watcher, screen, watch

    out = console(as_json)
    impatient = RetryPolicy(patience_seconds=0, busy_seconds=0)
    with ServerClient(server, token, retry=impatient, timeouts=Timeouts(connect=3.0, read=10.0)) as client:
        first = client.status()  # a wrong address or token is an error; a server that goes away later is shown
        if as_json:
            emit(first.model_dump(mode="json"))
            return
        if once or not out.is_terminal:
            out.print(screen(View(client.url, first), out.width))
            return
        from rich.live import Live

        with suppress(KeyboardInterrupt), Live(console=out, screen=True, auto_refresh=False) as live:
            for view in watch(Watcher(client.url, client.status), interval):
                live.update(screen(view, out.width, out.height), refresh=True)


def plan_of(out: Any, result: Profile) -> Plan:
    """The plan for the link that was measured, or one that is assumed, which is said."""
    from profiler import plan

    if result.link is None:
        say(
            out,
            f"No link was measured: the plan assumes {format_bandwidth(ASSUMED_BITS_PER_S)} (say otherwise with "
            "--bandwidth).",
        )
        return plan(result, bandwidth=ASSUMED_BITS_PER_S)
    return plan(result)


def show(out: Any, result: Profile, chosen: Plan) -> None:
    """A profile as a table, and the plan in words."""
    from profiler import profile_table

    out.print(profile_table(result, chosen, narrow=out.width < WIDE_COLUMNS))
    _explain(out, chosen)


def _explain(out: Any, chosen: Plan) -> None:
    from rich.markup import escape

    out.print(escape(str(chosen)), soft_wrap=True)


def check_plot(plot: Path | None) -> None:
    """Before anything is measured: InputError for a name that no picture can have."""
    if plot is None:
        return
    from profiler.plots import FORMATS

    if plot.suffix.lower() not in FORMATS:
        raise InputError(f"plot {str(plot)!r}: the name must end in {', '.join(FORMATS)}.")
    if not plot.resolve().parent.is_dir():
        raise InputError(f"plot {str(plot)!r}: its folder does not exist. Make it first.")


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_PROFILE_BYTES:
            raise ProfileError(f"profile {str(file)!r}: larger than {MAX_PROFILE_BYTES} bytes. Is it the right file?")
        return file.read_text("utf-8")
    except OSError as error:
        raise ProfileError(
            f"profile {str(file)!r} cannot be read: {error.strerror}. `hapi profile ... --json > FILE` writes one."
        ) from error
    except UnicodeDecodeError as error:
        raise ProfileError(f"profile {str(file)!r}: not text. Is it the right file?") from error
