"""The command line: entry points under Hydra, keys that do not exist, errors in one line."""
