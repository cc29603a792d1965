"""The models of a run over HTTP: an OpenAI-compatible API on Ray Serve.

``app.build`` is the application; the API itself (``api``) and the decoding in a replica (``engines``) know no Ray.
This package imports ``jsfree``; nothing in ``jsfree`` imports it.
"""
