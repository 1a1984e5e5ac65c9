"""What a machine with a GPU should answer about flrl: `python -m benchmarks.gpu`."""
