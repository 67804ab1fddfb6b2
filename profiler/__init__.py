"""The profiler: what every cut of a backbone costs, what the link gives, and the plan that follows from both.

Importing it is cheap: the names below are resolved on first use, so that the command line starts without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hapi.lazy import lazy_names

if TYPE_CHECKING:
    from profiler.front import profile
    from profiler.link import probe_link
    from profiler.loading import LoadCost, measure_loading, with_loading
    from profiler.measuring import measure
    from profiler.memory import MemoryModel, Workspace, measure_peak, prefix_memory
    from profiler.pipeline import Pipeline
    from profiler.planner import plan
    from profiler.plots import draw_profile
    from profiler.policies import POLICIES
    from profiler.report import profile_table
    from profiler.tier import TierProfile, TierRow, combine

_HOMES = {
    "POLICIES": "profiler.policies",
    "LoadCost": "profiler.loading",
    "MemoryModel": "profiler.memory",
    "Pipeline": "profiler.pipeline",
    "TierProfile": "profiler.tier",
    "TierRow": "profiler.tier",
    "Workspace": "profiler.memory",
    "combine": "profiler.tier",
    "draw_profile": "profiler.plots",
    "measure": "profiler.measuring",
    "measure_loading": "profiler.loading",
    "with_loading": "profiler.loading",
    "measure_peak": "profiler.memory",
    "plan": "profiler.planner",
    "prefix_memory": "profiler.memory",
    "probe_link": "profiler.link",
    "profile": "profiler.front",
    "profile_table": "profiler.report",
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
    "with_loading",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
