"""Options that several commands have, and the loader that they describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from hapi.units import parse_bandwidth, parse_bytes

if TYPE_CHECKING:
    from compute_client.loader import DataLoader

DATA = typer.Option(..., help="A folder per class or a list of files: path, file:///path or s3://bucket/prefix.")
MODEL = typer.Option(..., help="torchvision:NAME, hf:PATH_OR_NAME or package.module:factory.")
WEIGHTS = typer.Option("DEFAULT", help="DEFAULT, none, or a safetensors file.")
SERVER = typer.Option(None, help="Address of a storage server; without one, everything runs here.")
TOKEN = typer.Option(None, help="For the server; default: the environment's HAPI_TOKEN.")
PUSHDOWN = typer.Option("auto", help="What the server computes: auto, none, all, a policy, or the name of a cut.")
BATCH_SIZE = typer.Option(32, min=1, help="Samples per batch.")
CODEC = typer.Option(
    "float32",
    help="Of features on the wire: float32 (exact), float16, bfloat16 or int8; or several, as in float32,bfloat16, "
    "among which a measured plan chooses.",
)
COMPRESSION = typer.Option(
    "auto", help="Of features on the wire, lossless: none, lz4, zstd, packed, or auto: that which pays."
)
DEVICE = typer.Option(None, help="Where the rest runs, as in cpu or cuda; default: a GPU if there is one.")
WORKERS = typer.Option(0, "--workers", min=0, help="Threads that decode here; 0 is one per processor, at most 8.")
IN_FLIGHT = typer.Option(6, "--in-flight", min=1, max=256, help="Requests to the server at once.")
BUFFER = typer.Option("256MiB", "--buffer", help="Most bytes that are under way at once.")
BANDWIDTH = typer.Option(None, help="Of the link, as in 300mbit; default: measured when a plan needs it.")
RETRY_SECONDS = typer.Option(120.0, min=0, help="How long the server may be away before the command fails.")
FALLBACK = typer.Option(
    False, "--fallback", help="Go on without a server that stays away longer than that: read the data from here."
)
BUSY_SECONDS = typer.Option(3600.0, min=0, help="How long the server may go on saying that it is full.")
SKIP_ERRORS = typer.Option(False, "--skip-errors", help="Leave out pictures that cannot be read, and count them.")
CACHE_BYTES = typer.Option(
    None, "--cache-bytes", help="Most bytes of features kept in memory; default 1GiB or a quarter of what is free."
)
CACHE_DIR = typer.Option(None, "--cache-dir", help="Keep features in this folder as well, for this and later runs.")
DISK_CACHE_BYTES = typer.Option("16GiB", "--disk-cache-bytes", help="Most bytes that the folder may take.")
AUGMENT_VIEWS = typer.Option(
    None,
    "--augment-views",
    min=1,
    help="Keep K variants of a random transform and go through them in turn; default: new ones in every epoch.",
)
SEED = typer.Option(0, min=0, help="Of split, order, initialisation and random transforms.")
ENGINE = typer.Option("auto", help="How networks run here: auto (compiled once it pays), eager or compiled.")
PRECISION = typer.Option("float32", help="In which networks compute, here and on the server: float32 or bf16.")
JSON = typer.Option(False, "--json", help="One JSON document on standard output; the rest on standard error.")


def open_loader(
    data: str,
    model: str,
    *,
    bandwidth: str | None = None,
    buffer: str = "256MiB",
    cache_bytes: str | None = None,
    disk_cache_bytes: str = "16GiB",
    skip_errors: bool = False,
    in_flight: int = 6,
    workers: int = 0,
    codec: str = "float32",
    **options: Any,
) -> DataLoader:
    """The loader that a command's options describe; InputError for a size or rate that is none."""
    rate = None if bandwidth is None else parse_bandwidth(bandwidth)
    buffer_bytes = parse_bytes(buffer)
    kept_bytes = None if cache_bytes is None else parse_bytes(cache_bytes)
    disk_bytes = parse_bytes(disk_cache_bytes)
    from compute_client.loader import DataLoader
    from hapi.plan import Link

    return DataLoader(
        data,
        backbone=model,
        link=None if rate is None else Link(rate),
        buffer_bytes=buffer_bytes,
        cache_bytes=kept_bytes,
        disk_cache_bytes=disk_bytes,
        on_error="skip" if skip_errors else "raise",
        requests_in_flight=in_flight,
        num_workers=workers,
        codecs=[name.strip() for name in codec.split(",")],
        **options,
    )
