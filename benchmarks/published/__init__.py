"""The figures that were published of the split-execution system, and ours beside them."""
