"""The command line: entry points under Hydra, checks of configurations, errors in one line."""
