"""Answers of a classifier, and measures of them."""
