"""lowbit_k2: speech recognisers whose weights take 1, 2, 4 or 8 bits."""

__version__ = "0.1.0"
