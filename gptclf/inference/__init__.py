"""A classifier's answers, and how good they are."""
