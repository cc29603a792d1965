"""The HTTP API: routes, schema, limits and errors."""
