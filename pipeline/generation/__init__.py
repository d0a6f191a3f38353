"""Generation: KV-cached inference, sampling, requests, files and sidecars."""
