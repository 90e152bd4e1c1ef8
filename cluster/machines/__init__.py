"""Start of workers and access to machines: with Ray, or in a process of this machine."""
