"""A run on disk: file systems, folders, manifests, the lease, and the version of the code."""
