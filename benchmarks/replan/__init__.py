"""What `hapi bench replan` measures: a client that trains on while its link changes."""
