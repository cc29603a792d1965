"""The models of a run over HTTP: an OpenAI-compatible API on Ray Serve.

``app.build`` makes the application. The API (``http``) and the decoding in a replica (``engines``) do not use Ray.
This package imports ``jsfree``, never the other way round.
"""
