"""What a run shows: tables, pages, charts, pictures."""
