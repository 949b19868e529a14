"""The lower rungs of the model ladder: tiny random models, and planted worlds with trained ones."""
