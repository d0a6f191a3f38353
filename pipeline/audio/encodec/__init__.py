"""EnCodec's parts: a faster SEANet that streams, and the spectral encoder and decoder of the embedded codec."""
