"""Scripts that made the weights in assets/."""
