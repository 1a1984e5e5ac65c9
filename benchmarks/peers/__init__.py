"""The same jobs with other frameworks: see README.md."""
