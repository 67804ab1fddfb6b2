"""`hapi bench e2e`: whole training runs of every system, over networks and links, on two hosts."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.bench import options

ServerOption = Annotated[
    str | None, typer.Option("--server", help="A running storage server elsewhere, instead of one in the testbed.")
]
S3Option = Annotated[
    str | None, typer.Option("--s3-endpoint", help="Of an S3 store elsewhere; with --server and --data s3://...")
]
Rhos = Annotated[
    list[float] | None,
    typer.Option(
        "--rho",
        min=0.001,
        help="Link time of plain over its compute time; may be repeated. (default: 0.25, 1, 4 and 16, with --quick "
        "instead a link of 15 Mbit/s)",
    ),
]
Samples = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[MODEL=]N",
        help="Photographs; MODEL=N for one network, may be repeated. Of a folder with fewer, some come again under "
        "further names. (default: 224 with --quick, else per network so many that plain computes for about 12 s, 48 to "
        "1024)",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Samples per training batch. (default: 32, or fewer, so that an epoch has 6 batches)"),
]
Cpus = Annotated[int, typer.Option(min=1, help="Processors of this host.")]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("e2e")(e2e)


def e2e(
    model: options.Models = None,
    rho: Rhos = None,
    bandwidth: options.Bandwidths = None,
    system: options.Systems = None,
    epochs: options.Epochs = 1,
    samples: Samples = None,
    batch_size: BatchSize = None,
    data: options.DataOption = None,
    weights: options.Weights = "none",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    testbed: options.TestbedKind = "auto",
    storage_cpus: Cpus = 1,
    compute_cpus: Cpus = 1,
    server: ServerOption = None,
    s3_endpoint: S3Option = None,
    train_option: Annotated[
        list[str] | None, typer.Option(help="Further option of `hapi train`, like --train-option=--codec=float16.")
    ] = None,
    serve_option: Annotated[
        list[str] | None, typer.Option(help="Further option of `hapi serve`, like --serve-option=--workers=2.")
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs of a system whose epochs take less than 3 s; the middle one counts. Default: 3, with --quick 1.",
        ),
    ] = None,
    upload: Annotated[bool, typer.Option("--upload", help="Send the network anew in every system's start-up.")] = False,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Have each network compiled beforehand, as after longer jobs; default: unless --quick.",
        ),
    ] = None,
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Train a head on photographs of an S3 store behind a link, with every system; compare seconds and bytes.

    `plain` is PyTorch's DataLoader with boto3 and an eager backbone. `none` is HAPI's client with nothing pushed
    down, `all` with the whole backbone pushed down, `static` cut at the published freeze layer, `paper` by the
    published rule, `single` at the best single cut, `mix` HAPI's own choice (`--pushdown auto`).

    The peers: `precompute` keeps all features in a file in the first epoch, `s3torchconnector` reads with AWS's own
    connector, `webdataset` reads tar shards that were written beforehand, `ray` runs the backbone as a Ray actor on
    the storage host. The last three are used where they are installed (`pip install 'hapi-split[peers]'`).
    `plain-channels-last` is plain with the other layout of images in memory.

    rho is the link time of plain over its compute time: plain runs once without a limit for the latter, and the
    bandwidth follows. `seconds` are those of the epochs; start-up (imports, capture, upload, measuring) is apart, in
    `start_seconds`. Each system has processes of its own, a fresh server and empty caches; the
    server has the network already (unless --upload), as after a first job, and both tiers find it compiled on disk
    (unless --no-compile or --quick), as after longer ones.
    """
    from benchmarks.e2e.experiment import Settings, run

    run(
        Settings(
            models=tuple(model or ()),
            rhos=tuple(rho or ()),
            bandwidths=tuple(bandwidth or ()),
            systems=tuple(system or ()),
            epochs=epochs,
            samples=tuple(samples or ()),
            batch_size=batch_size,
            data=data,
            weights=weights,
            seed=seed,
            device=device,
            testbed=testbed,
            storage_cpus=storage_cpus,
            compute_cpus=compute_cpus,
            server=server,
            s3_endpoint=s3_endpoint,
            train_options=tuple(train_option or ()),
            serve_options=tuple(serve_option or ()),
            repeats=repeats or (1 if quick else 3),
            upload=upload,
            compile=not quick if compiled is None else compiled,
            quick=quick,
        ),
        report=report,
        as_json=as_json,
    )
