"""`python -m cli` is `amp`."""

from cli.main import main

main()
