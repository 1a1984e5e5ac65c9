"""flrl: federated learning research with PyTorch Lightning and Hydra, reproducible to the bit."""

__version__ = "0.1.0"
