"""What generated experiments import: training steps, guards, state, data, models, losses."""

__version__ = "0.1.0"
