"""The published figures as data. Nothing here was measured by us.

Sources, by their short names in `Source`:
- paper: "Accelerating transfer learning with near-data computation on cloud object stores", arXiv 2210.08650 (v1 and v2
  2022/2023, v3 SoCC'24), abstracts.
- logs: the authors' own run logs, github.com/aguirguis/collabml_client; seconds are those of the line "The whole
  process took", bytes those of "Read ... MB"; the part after the colon names branch and folder.

Their MB are of 2**20 bytes: 8000 samples of 4096 float32 each, alexnet's freeze layer, are logged as 125 MB.
"""

from __future__ import annotations

from dataclasses import dataclass

Source = str
PAPER: Source = "paper"
V1: Source = "logs: main/models_exp"
V2023: Source = "logs: merged-systems"
BATCHES: Source = "logs: main, batch adaptation"
TENANTS: Source = "logs: main, multi-tenant"
BANDWIDTHS: Source = "logs: merged-systems, alexnet, batch 8000"
SPLITS: Source = "logs: merged-systems/logs/idx_imagenet"

MODELS = ("alexnet", "resnet18", "resnet50", "vgg11", "vgg19", "densenet121", "vit_b_16")
"""By our names; the published ViT is timm's, of which every block counts as one layer."""
MIB = 2**20
IMAGE_BYTES = 1040.6 * MIB / 8000
"""Of an ImageNet photograph, on average, by their own traffic."""
IMAGES_V1, IMAGES_2023 = 50_000, 32_000
"""Per run: ImageNet's validation images, once."""


@dataclass(frozen=True)
class TimePoint:
    """Seconds of one run without split execution (`baseline`, image files) and with it (`split`), behind one link.

    `batch` and `client` are None where our notes of the logs do not tell them.
    """

    model: str
    gbit_per_s: float
    batch: int | None
    client: str | None
    baseline_seconds: float
    split_seconds: float
    images: int
    image_bytes: float
    source: Source

    @property
    def speedup(self) -> float:
        """Baseline's seconds over those of split execution."""
        return self.baseline_seconds / self.split_seconds

    @property
    def rho(self) -> float:
        """Link time of the baseline over its compute time, taken for what the link does not explain (no overlap)."""
        link = 8 * self.images * self.image_bytes / (self.gbit_per_s * 1e9)
        return link / max(self.baseline_seconds - link, 1e-9)


def _series() -> list[TimePoint]:
    rates = (0.05, 0.1, 0.5, 1, 2, 3, 5, 10, 12)
    split = (107.7, 64.1, 28.8, 27.7, 23.2, 26.6, 25.0, 34.3, 33.8)
    baseline = (905, 544, 255, 213, 196, 189, 188, 187, 185)
    return [
        TimePoint("alexnet", rate, 8000, "GPU", slow, fast, IMAGES_2023, IMAGE_BYTES, BANDWIDTHS)
        for rate, fast, slow in zip(rates, split, baseline, strict=True)
    ]


def _first(model: str, client: str, batch: int, baseline: float, split: float) -> TimePoint:
    return TimePoint(model, 1.0, batch, client, baseline, split, IMAGES_V1, IMAGE_BYTES, V1)


def _second(model: str, client: str, batch: int, baseline: float, split: float) -> TimePoint:
    return TimePoint(model, 1.0, batch, client, baseline, split, IMAGES_2023, IMAGE_BYTES, V2023)


SERIES = _series()
"""Alexnet at nine bandwidths, the only network of which there are so many."""
TIMES = (
    *SERIES,
    _first("alexnet", "GPU", 8000, 463.8, 148.4),
    _first("alexnet", "CPU", 8000, 491.9, 149.1),
    _first("alexnet", "GPU", 2000, 463.9, 307.3),
    _first("resnet18", "GPU", 2000, 448.2, 349.6),
    _first("densenet121", "GPU", 2000, 502.6, 410.7),
    _first("alexnet", "CPU", 2000, 519.1, 306.5),
    _first("resnet18", "CPU", 2000, 946.5, 352.4),
    _first("resnet50", "CPU", 2000, 2524.5, 322.4),
    _first("densenet121", "CPU", 2000, 2600.0, 444.2),
    _first("vit_b_16", "GPU", 200, 588, 1625),
    TimePoint("resnet18", 0.05, None, None, 1235, 1155, IMAGES_V1, IMAGE_BYTES, V1),
    _second("alexnet", "GPU", 256, 221, 119),
    _second("alexnet", "GPU", 2000, 194, 40),
    _second("resnet50", "GPU", 256, 226, 104),
    _second("vgg11", "GPU", 256, 224, 225),
    _second("vgg19", "GPU", 256, 227, 427),
    _second("vgg19", "GPU", 512, 223, 374),
    _second("densenet121", "GPU", 256, 244, 126),
    _second("vit_b_16", "GPU", 256, 371, 278),
    _second("vgg19", "CPU", 256, 2706, 457),
    _second("resnet50", "CPU", 2000, 1535, 75),
    _second("vit_b_16", "CPU", 256, 5263, 275),
)
"""Where the baseline ran out of memory (all but alexnet and densenet121 at large batches) there is no point."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that cross the link per iteration, without split execution and with it."""

    model: str
    batch: int
    baseline_bytes: float
    split_bytes: float
    source: Source


TRAFFIC = (
    Traffic("alexnet", 2000, 263 * MIB, 70 * MIB, V1),
    Traffic("alexnet", 8000, 1040.6 * MIB, 125.3 * MIB, V1),
    Traffic("resnet18", 2000, 263 * MIB, 192 * MIB, V1),
    Traffic("resnet50", 2000, 263 * MIB, 16 * MIB, V1),
    Traffic("vgg11", 2000, 263 * MIB, 31 * MIB, V1),
    Traffic("vgg19", 2000, 263 * MIB, 766 * MIB, V1),
    Traffic("densenet121", 2000, 263 * MIB, 192 * MIB, V1),
)
"""densenet121: 192 to 383 MB, by split. Of ViT no traffic was logged; ours is computed at the same batch."""
TRAFFIC_BATCH = 2000


@dataclass(frozen=True)
class Adaptation:
    """Alexnet, requests of 1000 samples, all at once: seconds and peak GPU memory. None: it ran out of memory."""

    samples_at_once: int
    fixed_seconds: float | None
    adapted_seconds: float | None
    fixed_peak_bytes: float | None
    adapted_peak_bytes: float
    requests_reduced: float
    """Part of the requests whose batch was made smaller."""


ADAPTATION = (
    Adaptation(1000, 943.6, 946.6, 4718e6, 4718e6, 0.0),
    Adaptation(4000, 227.5, 228.3, 18898e6, 18866e6, 0.0),
    Adaptation(6000, 182.5, 181.4, 28344e6, 28296e6, 0.02),
    Adaptation(7000, None, 175.7, None, 28296e6, 0.15),
    Adaptation(8000, None, 157.6, None, 28296e6, 0.30),
    Adaptation(10_000, None, 154.6, None, 27576e6, 0.62),
    Adaptation(12_000, None, 160.8, None, 27181e6, 0.48),
    Adaptation(14_000, None, None, None, 23691e6, 0.69),
)
"""Without adaptation 10,000 and more were not logged; 7,000 and 8,000 crashed."""


SERVER_BATCHES = ((16, 133.1), (32, 136.1), (64, 137.9), (256, 140.8), (512, 137.8))
"""(server batch, seconds) of vgg19 with training batch 1000: how little the server's own batch matters there."""
SERVER_BATCHES_SOURCE: Source = "logs: BA"


@dataclass(frozen=True)
class TenantPoint:
    """So many tenants at once: mean seconds, and how many failed. `whole` trains in the object store altogether."""

    tenants: int
    split_seconds: float | None
    whole_seconds: float | None
    split_failed: int


TENANT_POINTS = (
    TenantPoint(2, 632, 446, 0),
    TenantPoint(4, 800, 715, 0),
    TenantPoint(6, 1112, 1521, 0),
    TenantPoint(8, 1138, 3418, 0),
    TenantPoint(10, 1429, 6969, 0),
    TenantPoint(12, None, None, 4),
    TenantPoint(20, None, None, 20),
)

NEAR = 1.05
"""Split quality counts the cases in which the choice takes at most so many times the best split's time."""
SPLIT_QUALITY = 0.868
SPLIT_QUALITY_SOURCE: Source = PAPER


@dataclass(frozen=True)
class SplitSweep:
    """All splits of a network measured at one rate: ratios of seconds to those of the best split."""

    model: str
    gbit_per_s: float
    freeze_ratio: float
    least_output_ratio: float
    worst_ratio: float


SPLIT_SWEEPS = (
    SplitSweep("alexnet", 1, 1.00, 1.00, 3.65),
    SplitSweep("alexnet", 12, 1.07, 1.00, 2.24),
    SplitSweep("densenet121", 1, 1.27, 1.00, 7.58),
    SplitSweep("densenet121", 12, 1.11, 1.00, 3.42),
    SplitSweep("resnet18", 1, 1.00, 1.00, 10.66),
    SplitSweep("resnet18", 12, 1.00, 1.00, 4.84),
    SplitSweep("resnet50", 1, 1.00, 1.00, 8.38),
    SplitSweep("resnet50", 12, 1.00, 1.00, 3.54),
    SplitSweep("vgg11", 1, 1.00, 1.00, 11.51),
    SplitSweep("vgg11", 12, 1.00, 1.00, 4.02),
    SplitSweep("vgg19", 1, 1.05, 1.00, 4.97),
    SplitSweep("vgg19", 12, 1.27, 1.17, 2.58),
    SplitSweep("vit_b_16", 1, 1.99, 1.01, 1.99),
    SplitSweep("vit_b_16", 12, 2.17, 1.08, 2.17),
)
"""Training batch 1000, 8 iterations, tensors cached on the server, GPU client; splits that failed are left out."""

HEADLINES = (("at most, v1 and v2", 11.0), ("at most, v3 (SoCC'24)", 2.5))
"""Times as fast; v3's baseline overlaps reading and training, and had cached tensors. Of v1: at most 8.3 times less
data, which is alexnet at batch 8000 above."""
