"""A trained model for others: its folder of weights, config and card, and its way to the hub."""
