"""Numbers that papers report, and what a reproduction of them is held to."""
