"""What is due, and one run of it: extract -> transform -> load. The only room that sees all three."""
