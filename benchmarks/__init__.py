"""Measurements on the machine at hand: `python -m benchmarks`; README.md has what they gave and where."""
