"""End to end: whole training runs on the testbed, and what is said of them."""
