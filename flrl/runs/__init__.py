"""A run's folder: checkpoints, tables, settings that may change on a resume, and checks of its files."""
