"""Audio files, codecs and embedders: waveforms to codes and vectors, and back."""
