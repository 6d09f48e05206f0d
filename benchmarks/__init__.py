"""Measurements that print ratios on the machine at hand; README.md has commands and results."""
