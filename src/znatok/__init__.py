"""znatok: a small open model becomes an expert of your field, and the numbers say whether it did."""

__version__ = "0.1.0"
