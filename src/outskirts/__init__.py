"""Outskirts: out-of-distribution detection with synthetic outliers."""

__version__ = "0.1.0"
