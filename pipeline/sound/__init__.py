"""Between sound and numbers: audio files, the codec, the embedder, measures of sound."""
