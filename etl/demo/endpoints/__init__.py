"""What each path below /api/public answers; one module per kind of row."""
