"""Frozen image and text towers."""
