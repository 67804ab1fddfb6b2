"""What every scenario of `hapi bench` shares: rows, their table, the machine they were measured on, and the report."""
