"""The page to play with: what is asked for there, made by the functions of `listen`, and shown."""
