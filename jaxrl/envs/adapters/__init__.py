"""Third-party suites behind the `Env` protocol, one file each; each imports its suite."""
