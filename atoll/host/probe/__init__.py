"""What this host can do, found out rather than believed: acceleration, facts, and the parts that are missing."""
