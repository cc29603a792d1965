"""What the commands of the CLI do."""
