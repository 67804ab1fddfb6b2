"""The profiler: what every cut of a backbone costs, what the link gives, and the plan that follows from both."""

from profiler.pipeline import Pipeline
from profiler.planner import plan
from profiler.policies import POLICIES
from profiler.tier import TierProfile, TierRow, combine

__all__ = ["POLICIES", "Pipeline", "TierProfile", "TierRow", "combine", "plan"]
