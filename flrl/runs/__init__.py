"""A run's folder: checkpoints, rows, what may change on a resume, whether its files belong together."""
