"""Dual-path decoding (paper, section 3.2): mixing, sampling, the literal algorithm and the engine."""
