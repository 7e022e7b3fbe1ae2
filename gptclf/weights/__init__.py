"""Models from files and the hub, and models saved to folders."""
