"""The HTTP side: routes, schemas, limits and errors."""
