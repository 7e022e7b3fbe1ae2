"""Texts to rows of token ids without padding, and rows to batches."""
