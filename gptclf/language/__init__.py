"""Text generation, scoring and zero-shot classification with language models."""
