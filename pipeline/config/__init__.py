"""The command line: composing settings with Hydra, checking their types, and hints about errors."""
