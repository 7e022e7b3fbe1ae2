"""Downloads: HTTP, resumable transfers, and the Hugging Face hub and its cache."""
