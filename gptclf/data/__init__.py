"""Text to ragged token ids, and ids to batches."""
