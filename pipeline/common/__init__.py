"""What every folder may import: errors, files, seeds, console output. It imports no other folder."""
