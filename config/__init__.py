"""Command lines and settings."""
