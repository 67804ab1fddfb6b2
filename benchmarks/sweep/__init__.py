"""The planner's proof: every cut of several networks measured at several bandwidths, beside each policy's choice."""
