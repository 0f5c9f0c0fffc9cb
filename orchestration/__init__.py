"""What a workflow is and what happens next: pure decisions, no clock, no chance, no I/O, no logging."""
