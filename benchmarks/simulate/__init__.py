"""Event simulation of many storage nodes and many tenants, calibrated by profiles that were measured."""
