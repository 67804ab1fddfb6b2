"""Who may ask, and for what: tenants by their tokens, and the dataset roots that each may read."""
