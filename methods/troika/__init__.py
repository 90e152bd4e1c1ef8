"""Troika: three branches with cross-modal traction (CVPR 2024)."""
