"""A data set drawn by ourselves, and the demonstration that trains on it."""
