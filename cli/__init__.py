"""What a person types: up, run, validate, schema, version. Data goes to standard output, talk to standard error."""
