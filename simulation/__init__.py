"""The whole product in one process on virtual time, with faults drawn from a seed, checked after every run."""
