"""The long-lived client, as the sweep talks to it: a real server, a small network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.bench.photographs import photographs
from benchmarks.localserver import local_server
from benchmarks.sweep.client import Commands
from benchmarks.testbed.dialogue import dialogue
from benchmarks.testbed.host import Host
from benchmarks.testbed.processes import ProgramFailedError
from hapi.errors import InputError
from hapi.plan import Profile

HERE = Host("compute", "127.0.0.1")


def test_it_opens_profiles_and_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    commands = Commands()
    with pytest.raises(InputError, match="comes first"):
        commands.do({"do": "profile"})
    options = ["--feature-cache-bytes", "0", "--engine", "eager", "--threads", "1"]
    with photographs(None, 24) as folder, local_server(folder, options=options) as server:
        job = {"data": str(folder), "model": "sweep_network:model", "server": server.url, "weights": "DEFAULT"}
        opened = commands.do({"do": "open", **job, "batch_size": 8, "device": "cpu", "engine": "eager"})
        assert opened["samples"] == 24
        names = [cut["name"] for cut in opened["cuts"]]
        assert (names[0], names[-1]) == ("input", "output")
        profile = Profile.from_json(commands.do({"do": "profile"}))
        assert [cut.name for cut in profile.cuts] == names
        shares = [{"name": "input", "share": 0.5}, {"name": "output", "share": 0.5}]
        command = {"cuts": shares, "seconds": 0.1, "most_seconds": 60.0}
        seen = commands.do({"do": "watch", **command})
        again = commands.do({"do": "watch", **command})
        assert not seen["is_bound"]
        assert seen["seconds_per_sample"] > 0
        assert min(seen["arrived_samples"], again["arrived_samples"]) >= 32  # nothing was kept of the first time
        assert seen["retries"] == 0
        assert commands.do({"do": "watch", **command, "most_seconds": 1e-3, "give_up": 1e-6})["is_bound"]


def test_a_process_that_ends_or_is_silent_is_told_with_its_words() -> None:
    last_words = "import sys; print('{}', flush=True); input(); sys.exit('out of paper')"
    with (
        dialogue([sys.executable, "-c", last_words], HERE.environment()) as talk,
        pytest.raises(ProgramFailedError, match=r"watch: the process ended\. out of paper"),
    ):
        talk.ask({"do": "watch"}, 60)
    silent = "print('{}', flush=True); input(); input()"
    with (
        dialogue([sys.executable, "-c", silent], HERE.environment()) as talk,
        pytest.raises(ProgramFailedError, match="watch: no answer within 0 s"),
    ):
        talk.ask({"do": "watch"}, 0.01)
