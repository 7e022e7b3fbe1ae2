"""The network: configuration, trunk and heads, and the choice of trainable parameters."""
