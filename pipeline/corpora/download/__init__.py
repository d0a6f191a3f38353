"""Downloads of corpora: parallel, resumable, verified."""
