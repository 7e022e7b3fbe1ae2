"""Training: the recipe, the loop, callbacks and saved states."""
