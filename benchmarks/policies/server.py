"""`python -m benchmarks.policies.server --policy fixed:64 -- OPTIONS`: `hapi serve OPTIONS` with another batch policy.

Engine, decoder, queues and HTTP are the server's own. As in the systems that are compared with, nothing else of it
looks at memory: the budget is taken for endless, and a batch waits until it is whole.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.policies.fixed import FixedPolicy
from benchmarks.policies.linear import LinearProgramPolicy
from hapi.cli import main as hapi_main
from hapi.errors import InputError
from storage_server.extraction.sizing import BatchPolicy
from storage_server.memory.budget import MemoryBudget
from storage_server.scheduling.rates import Rates
from storage_server.service import Service
from storage_server.settings import ServerSettings

ENDLESS = 2**50


class PatientRates(Rates):
    """Rates by which a batch may take for ever, so that rows wait until theirs is whole."""

    def seconds(self, key: tuple[str, ...]) -> float:
        return 3600.0


def policy_of(name: str, device: str = "cpu") -> BatchPolicy:
    """The policy of a name; InputError."""
    kind, _, number = name.partition(":")
    if kind == "fixed" and number.isdigit() and int(number) > 0:
        return FixedPolicy(int(number))
    if name == "whole":
        return FixedPolicy()
    if name == "paper-lp":
        return LinearProgramPolicy(device)
    raise InputError(f"--policy {name}: it is fixed:N, whole or paper-lp.")


def make(name: str) -> Any:
    """Settings to a service that leaves memory to that policy."""

    def service(settings: ServerSettings) -> Service:
        budget = MemoryBudget(
            settings.device, ENDLESS, settings.queue_limit, lambda device: ENDLESS, lambda device: 0, lambda: 0
        )
        return Service(settings, policy=policy_of(name, settings.device), budget=budget, rates=PatientRates())

    return service


def main(arguments: list[str]) -> None:
    """Takes `--policy NAME` off and runs the rest as `hapi serve` does."""
    from storage_server import commands

    if len(arguments) < 2 or arguments[0] != "--policy":
        raise InputError("say --policy NAME first, then the options of hapi serve.")
    policy_of(arguments[1])
    commands.make_service = make(arguments[1])
    sys.argv = ["hapi", "serve", *[option for option in arguments[2:] if option != "--"]]
    hapi_main()


if __name__ == "__main__":
    main(sys.argv[1:])
