"""How frames travel. Each transport passes the same contract suite."""
