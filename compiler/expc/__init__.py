"""The experiment compiler: one YAML spec in, readable PyTorch Lightning modules and shell out."""

__version__ = "0.1.0"
