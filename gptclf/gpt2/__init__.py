"""The network: configuration, trunk, heads, and what of it trains."""
