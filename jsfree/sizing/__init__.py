"""What a run will need: shapes, memory, time and disk space."""
