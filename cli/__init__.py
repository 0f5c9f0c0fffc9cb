"""What a person types: the `amp` command."""
