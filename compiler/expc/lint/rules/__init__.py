"""Every rule, by family. Importing this package registers them."""

from expc.lint.rules import losses, numerics, output, shape, stages, sweeps, text

__all__ = ["losses", "numerics", "output", "shape", "stages", "sweeps", "text"]
