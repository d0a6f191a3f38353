"""Ground floor: errors, files, console output. Imports nothing of ours."""
