"""Models from files and the hub."""
