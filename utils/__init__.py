"""What every method shares: settings, engine, losses, metrics, reports."""
