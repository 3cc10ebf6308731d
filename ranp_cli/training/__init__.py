"""Prune while it trains: what removes units of a network in place, and what watches its training step."""
