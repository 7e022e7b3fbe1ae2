"""Features of the frozen prefix: computing them once per text, and keeping them."""
