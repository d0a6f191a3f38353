"""Scripts behind what ships: the weights in assets/, the README's table of memory."""
