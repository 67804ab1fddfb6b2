"""The profiler: what every cut of a backbone costs, what the link gives, and the plan that follows from both.

Importing it is cheap: the names below are resolved on first use, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profiler.front import profile
    from profiler.link import probe_link
    from profiler.loading import LoadCost, measure_loading
    from profiler.measuring import measure
    from profiler.memory import MemoryModel, Workspace, measure_peak, prefix_memory
    from profiler.pipeline import Pipeline
    from profiler.planner import plan
    from profiler.plots import draw_profile
    from profiler.policies import POLICIES
    from profiler.report import profile_table
    from profiler.tier import TierProfile, TierRow, combine

_HOMES = {
    "POLICIES": "policies",
    "LoadCost": "loading",
    "MemoryModel": "memory",
    "Pipeline": "pipeline",
    "TierProfile": "tier",
    "TierRow": "tier",
    "Workspace": "memory",
    "combine": "tier",
    "draw_profile": "plots",
    "measure": "measuring",
    "measure_loading": "loading",
    "measure_peak": "memory",
    "plan": "planner",
    "prefix_memory": "memory",
    "probe_link": "link",
    "profile": "front",
    "profile_table": "report",
}

__all__ = [
    "POLICIES",
    "LoadCost",
    "MemoryModel",
    "Pipeline",
    "TierProfile",
    "TierRow",
    "Workspace",
    "combine",
    "draw_profile",
    "measure",
    "measure_loading",
    "measure_peak",
    "plan",
    "prefix_memory",
    "probe_link",
    "profile",
    "profile_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'profiler' has no attribute {name!r}")
    value = getattr(import_module(f"profiler.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
