"""How workers are started and machines are reached: with Ray, or in a process of this machine."""
