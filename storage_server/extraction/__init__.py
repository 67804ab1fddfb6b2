"""From sample indices to a stream of features: reading, decoding, batches, the prefix on its device, frames."""
