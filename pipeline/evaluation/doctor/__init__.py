"""The dataset doctor: what a dataset has, what is wrong with it, and what its codec cannot say about its sounds."""
