"""Scripts that create the weights in assets/ and the memory table in the documentation."""
