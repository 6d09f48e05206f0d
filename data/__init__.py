"""Datasets: the one format, the scripts that write it, image files, references."""
