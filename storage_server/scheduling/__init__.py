"""Who is next: fair shares of threads, device and turns, and how much one batch holds."""
