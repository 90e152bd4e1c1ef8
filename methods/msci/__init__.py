"""MSCI: texts that attend to low, then to high layers of the image tower (IJCAI 2025)."""
