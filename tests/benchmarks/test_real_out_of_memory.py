"""The CPU allocator really fails, in a server that cannot know it will: the client sees nothing but time."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from benchmarks.localserver import local_server
from hapi.data import describe_transform, open_store
from hapi.data.transfer import put_pictures
from hapi.model import capture
from hapi.wire.protocol import ExtractRequest
from profiler.remote import ServerClient

SIZE, CHANNELS, SAMPLES = 64, 768, 32
ROOM = 2 * 2**20
"""Above what the server has mapped once it is warm: a sixth of one of the two tensors of a single sample.

It is for what is no tensor of a batch and finds no hole in the heap. A sample's two tensors fit all the same: what they
take is kept back beforehand (storage_server.memory.reserve) and counts as mapped, and so do, where they can be had, two
stacks of threads that may start. The heap's own free memory is mostly holes a few bytes too small for a tensor.
"""


class Hungry(nn.Module):
    """Two activations of 12 MiB per sample for a result of 3 kB."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, CHANNELS, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.wide(image)).mean(dim=(2, 3))


def mapped_bytes(pid: int) -> int:
    """What counts against RLIMIT_DATA."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not say")


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits another process")
def test_the_client_sees_nothing_of_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = capture(Hungry().eval(), torch.randn(2, 3, SIZE, SIZE), name="hungry")
    transform = describe_transform(
        v2.Compose([v2.ToImage(), v2.Resize((SIZE, SIZE)), v2.ToDtype(torch.float32, scale=True)])
    )
    put_pictures(open_store(tmp_path / "photos"), SAMPLES, classes=2, seed=0, workers=1)
    quiet = {"HAPI_SERVER_FEATURE_CACHE_BYTES": "0"}
    options = ("--threads", "1", "--workers", "1", "--read-threads", "2")
    with local_server(tmp_path / "photos", options=options, environment=quiet) as server:
        client = ServerClient(server.url)
        dataset = client.register((tmp_path / "photos").as_uri())
        client.ensure_model(graph)

        def features(indices: list[int]) -> dict[int, torch.Tensor]:
            request = ExtractRequest(
                dataset=dataset.digest,
                indices=indices,
                model=graph.digest,
                cut="output",
                transform=transform.to_json(),
            )
            found: dict[int, torch.Tensor] = {}
            for batch in client.extract(request):
                assert not batch.errors
                for row, index in enumerate(batch.indices.tolist()):
                    found[index] = batch.tensors[0][row].clone()
            return found

        expected = features([0, 1])  # warm: threads started, kernels made
        limit = mapped_bytes(server.pid) + ROOM
        resource.prlimit(server.pid, resource.RLIMIT_DATA, (limit, limit))
        found = features(list(range(SAMPLES)))
        assert sorted(found) == list(range(SAMPLES))
        for index, row in expected.items():
            torch.testing.assert_close(found[index], row, rtol=1e-4, atol=1e-5)
        (prefix,) = client.status().prefixes
        assert prefix.out_of_memory > 0, "memory must have run out for this test to say anything"
