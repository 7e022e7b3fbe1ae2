"""The command line: `gptclf`, or `python -m gptclf`."""
