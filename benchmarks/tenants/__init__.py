"""Many tenants on one storage server: their jobs, light clients that run them, and the server under one budget."""
