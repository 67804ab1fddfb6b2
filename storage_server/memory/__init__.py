"""What the server may take of the machine's memory, what it promised of it, and what a prefix needs on this device."""
