"""The command line: composing settings with Hydra, checking their types, quoting and hints."""
