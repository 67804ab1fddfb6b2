"""How much memory there is, and what is promised from it."""
