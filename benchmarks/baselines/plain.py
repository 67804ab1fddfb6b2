"""The plain PyTorch script that HAPI is compared with: no HAPI in it, and what PyTorch's and AWS's pages recommend.

A DataLoader with worker processes over an ImageFolder, or over a Dataset that reads objects of a bucket with boto3 (one
client per worker, made on first use); the backbone runs eagerly, in eval mode, under no_grad; a linear head trains on
its features. It follows the rules of `hapi train` (see HeadTrainer), written out again here, so that both must give the
same losses:

- Of n samples, round(n * val_split) are held out: the first of randperm(n) from a generator with the seed. Both parts
  are sorted.
- Training reads its part with shuffle=True and a generator with the seed, validation in order, both in batches of
  `batch_size`, the last short one included.
- The head is nn.Linear(features, classes) right after torch.manual_seed(seed).
- SGD(lr=0.01, momentum=0.9) or Adam(lr=0.001), mean cross-entropy, one step per batch.

Run it: python -m benchmarks.baselines.plain --data photos/ --model torchvision:mobilenet_v2 --weights w.safetensors
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from hapi.allocator import keep_freed_memory

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # those of ImageFolder
READ_ATTEMPTS = 5


class S3ImageFolder(Dataset[tuple[Tensor, int, int]]):
    """ImageFolder's rule over the objects of `s3://bucket/prefix`; a sample is (image, class, bytes read)."""

    def __init__(self, uri: str, transform: Callable[[Any], Tensor]) -> None:
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        self.transform = transform
        self._client: Any = None
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        found = [item["Key"][len(self.prefix) :] for page in pages for item in page.get("Contents", [])]
        keys = [key for key in found if "/" in key and key.lower().endswith(EXTENSIONS)]
        self.classes = sorted({key.split("/")[0] for key in keys})
        keys.sort(key=lambda key: (key.split("/")[0], *os.path.split(key)))
        self.samples = [(key, self.classes.index(key.split("/")[0])) for key in keys]

    @property
    def client(self) -> Any:
        """One per process: boto3 clients must not cross a fork."""
        if self._client is None or self._client[0] != os.getpid():
            self._client = os.getpid(), make_client()
        return self._client[1]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        from PIL import Image

        key, label = self.samples[index]
        data = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"].read()
        with Image.open(io.BytesIO(data)) as image:
            return self.transform(image.convert("RGB")), label, len(data)


def make_client() -> Any:
    """A boto3 client of AWS, or of the store that HAPI_S3_ENDPOINT names (as for HAPI itself)."""
    import boto3
    from botocore.config import Config

    endpoint = os.environ.get("HAPI_S3_ENDPOINT") or None
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=os.environ.get("HAPI_S3_ACCESS_KEY") or None,
        aws_secret_access_key=os.environ.get("HAPI_S3_SECRET_KEY") or None,
        region_name=os.environ.get("HAPI_S3_REGION") or ("us-east-1" if endpoint else None),
        config=Config(
            retries={"mode": "standard", "max_attempts": READ_ATTEMPTS},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if endpoint else {},
        ),
    )


def load_network(spec: str, weights: str) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """A torchvision or Hugging Face classifier whose last Linear is nn.Identity(), and its transform."""
    kind, _, name = spec.partition(":")
    torch.manual_seed(0)  # random weights are those of seed 0
    if kind == "torchvision":
        from torchvision import models

        preset = models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined, unused-ignore]
        network = models.get_model(name, weights=preset if weights == "DEFAULT" else None)
        transform = preset.transforms()
    elif kind == "hf":
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

        if weights == "DEFAULT":
            network = AutoModelForImageClassification.from_pretrained(name, use_safetensors=True)
        else:
            network = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(name))
        processor = AutoImageProcessor.from_pretrained(name)

        def transform(image: Any) -> Tensor:
            return processor(images=image, return_tensors="pt")["pixel_values"][0]
    else:
        raise ValueError(f"model {spec!r}: this script knows torchvision:NAME and hf:PATH_OR_NAME.")
    if weights not in ("DEFAULT", "none"):
        from safetensors.torch import load_model

        load_model(network, weights)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"model {spec!r}: it does not end with a Linear layer, which this script replaces.")
    owner, _, leaf = linear[-1].rpartition(".")
    setattr(network.get_submodule(owner), leaf, nn.Identity())
    return network.requires_grad_(False).eval(), transform


def open_dataset(uri: str, transform: Callable[[Any], Tensor]) -> Any:
    """ImageFolder over a path or file:// address, S3ImageFolder over an s3:// one."""
    if uri.startswith("s3://"):
        return S3ImageFolder(uri, transform)
    from torchvision.datasets import ImageFolder

    return ImageFolder(uri.removeprefix("file://"), transform)


class Features:
    """The backbone over the batches of a loader: (features, labels), counting what was read from a bucket."""

    def __init__(self, backbone: nn.Module, loader: Iterable[Any], device: torch.device) -> None:
        self.backbone, self.loader, self.device = backbone, loader, device
        self.bytes_received = self.requests = 0

    def __iter__(self) -> Any:
        for images, labels, *sizes in self.loader:
            for size in sizes:
                self.bytes_received += int(size.sum())
                self.requests += len(size)
            with torch.no_grad():
                features = self.backbone(images.to(self.device, non_blocking=True))
            features = features if isinstance(features, Tensor) else features.logits
            yield features.flatten(1), labels.to(self.device, non_blocking=True)


def train_plain(
    data: str,
    model: str,
    *,
    weights: str = "DEFAULT",
    epochs: int = 5,
    batch_size: int = 32,
    optimizer: str = "sgd",
    lr: float | None = None,
    weight_decay: float = 0.0,
    val_split: float = 0.2,
    seed: int = 0,
    num_workers: int | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Trains a linear head; the document of `hapi train --json`, as far as it applies."""
    started = time.perf_counter()
    where = torch.device(device)
    backbone, transform = load_network(model, weights)
    dataset = open_dataset(data, transform)
    samples = len(dataset)
    held_out = round(samples * val_split)
    shuffled = torch.randperm(samples, generator=torch.Generator().manual_seed(seed)).tolist()
    part, held = sorted(shuffled[held_out:]), sorted(shuffled[:held_out])
    workers = min(8, os.cpu_count() or 1) if num_workers is None else num_workers
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": where.type == "cuda",
    }
    order = torch.Generator().manual_seed(seed)
    backbone = backbone.to(where)
    train = Features(backbone, DataLoader(Subset(dataset, part), shuffle=True, generator=order, **common), where)
    val = Features(backbone, DataLoader(Subset(dataset, held), **common), where)

    head: nn.Linear | None = None
    losses, accuracies, epoch_seconds = [], [], []
    for epoch in range(epochs):
        begun = time.perf_counter()
        if epoch and workers:  # persistent workers keep the seed that a new pass would have drawn before its order
            torch.empty((), dtype=torch.int64).random_(generator=order)
        total, seen = 0.0, 0
        for features, labels in train:
            if head is None:
                torch.manual_seed(seed)
                head = nn.Linear(features.shape[1], len(dataset.classes)).to(where)
                steps = make_optimizer(head, optimizer, lr, weight_decay)
            steps.zero_grad()
            loss = nn.functional.cross_entropy(head(features), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            steps.step()
            total += loss.item() * len(labels)
            seen += len(labels)
        losses.append(total / seen)
        epoch_seconds.append(time.perf_counter() - begun)
        if held and head is not None:
            with torch.no_grad():
                right = sum(int((head(features).argmax(1) == labels).sum()) for features, labels in val)
            accuracies.append(right / len(held))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "system": "plain",
        "model": model,
        "samples": samples,
        "train_samples": len(part),
        "val_samples": len(held),
        "epochs": epochs,
        "seconds": time.perf_counter() - started,
        "epoch_seconds": epoch_seconds,
        "losses": losses,
        "final_loss": losses[-1],
        "accuracies": accuracies,
        "accuracy": accuracies[-1] if accuracies else None,
        "bytes_received": train.bytes_received + val.bytes_received,
        "requests": train.requests + val.requests,
        "peak_rss_bytes": peak if sys.platform == "darwin" else peak * 1024,
        "classes": list(dataset.classes),
    }


def make_optimizer(head: nn.Module, name: str, lr: float | None, weight_decay: float) -> torch.optim.Optimizer:
    """`sgd` or `adam`, with the learning rates of `hapi train`."""
    if name == "adam":
        return torch.optim.Adam(head.parameters(), lr=lr or 0.001, weight_decay=weight_decay)
    return torch.optim.SGD(head.parameters(), lr=lr or 0.01, momentum=0.9, weight_decay=weight_decay)


def main(arguments: list[str] | None = None) -> None:
    """Prints one JSON document on standard output. Freed memory is kept, as by `hapi train`: equal care for both."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description="Plain PyTorch transfer learning, for comparison.")
    parser.add_argument("--data", required=True, help="a folder per class: a path, file:// or s3:// address")
    parser.add_argument("--model", required=True, help="torchvision:NAME or hf:PATH_OR_NAME")
    parser.add_argument("--weights", default="DEFAULT", help="DEFAULT, none, or a safetensors file")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd")
    parser.add_argument("--lr", type=float, help="default 0.01 for sgd, 0.001 for adam")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--val-split", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-workers", type=int, help="worker processes; default one per processor, at most 8")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(train_plain(**vars(parser.parse_args(arguments)))))


if __name__ == "__main__":
    main()
