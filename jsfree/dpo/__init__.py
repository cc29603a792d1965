"""Direct preference optimisation on image pairs (paper, section 3.1, Eq. 1-2)."""
