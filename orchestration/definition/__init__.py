"""What a person writes: models, parsing with every problem at its place, graph checks, and the compiled plan."""
