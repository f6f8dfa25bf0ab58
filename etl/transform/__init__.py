"""API JSON to rows and back; pure functions, no clock, no I/O."""
