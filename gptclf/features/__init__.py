"""The cut between what is frozen and what trains, and what is kept of the frozen part."""
