"""What a language model can do: generate, score, classify without training."""
