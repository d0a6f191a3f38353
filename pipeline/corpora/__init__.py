"""What there is to encode: lists clips, decodes nothing."""
