"""The language model: patterns, network, training, sampling."""
