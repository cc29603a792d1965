"""The decoding in a model replica, behind the interface of ``serve.http.protocol.CaptionModel``; without Ray."""
