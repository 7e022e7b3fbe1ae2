"""Where weights and tokenizers come from, and where they go."""
