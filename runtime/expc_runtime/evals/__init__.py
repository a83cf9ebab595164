"""Measurements of a trained stage: `evaluate` runs one and leaves its result."""
