"""What runs a detector over data: building it, training, the scoring pass, resuming."""
