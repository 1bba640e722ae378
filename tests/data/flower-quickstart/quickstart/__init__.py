"""quickstart: a Flower app with NumPy."""
