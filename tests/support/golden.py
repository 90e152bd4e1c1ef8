"""Golden numbers: small values of our own, computed by plain oracles on drawn inputs, and kept in the repository.

Tests that compare with public programs need fixtures that a fresh clone does not have; these numbers take their place there.
Renew them after a deliberate change with ``CZSL_RENEW=1 python -m pytest FILE``, and read the difference before committing it.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np
import torch

RENEW = bool(os.environ.get("CZSL_RENEW"))


class Golden:
    """The numbers of one file."""

    def __init__(self, path: Path):
        self.path = path
        self.values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def check(self, name: str, oracle, *others, rtol: float = 1e-5, atol: float = 1e-6) -> None:
        """Compare an oracle's values with the stored ones, and other values (what the product computes) as well."""
        found = flat(oracle)
        if RENEW:
            self.values[name] = [float(f"{x:.9g}") for x in found.tolist()]
            lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(self.values[key])}" for key in sorted(self.values))
            self.path.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
        for values in (found, *map(flat, others)):
            np.testing.assert_allclose(values, self.values[name], rtol=rtol, atol=atol, err_msg=name)


def flat(values) -> np.ndarray:
    """A tensor, an array, or a list of numbers as a vector."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, np.float64).reshape(-1)


def drawn(name: str, *shape: int) -> torch.Tensor:
    """Normal numbers, float64, that depend on the name and the shape only."""
    return torch.from_numpy(np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape))


@torch.no_grad()
def fill(parameters: torch.nn.Module | dict[str, torch.nn.Parameter], prefix: str = "") -> None:
    """Overwrite parameters by drawn numbers of a usual size, whatever initialised them."""
    named = parameters.items() if isinstance(parameters, dict) else parameters.named_parameters()
    for name, parameter in named:
        own = drawn(prefix + name, *parameter.shape)
        if parameter.dim() > 1:
            parameter.copy_(own / parameter.shape[-1] ** 0.5)
        else:
            parameter.copy_((1.0 if name.endswith("weight") else 0.0) + 0.1 * own)
