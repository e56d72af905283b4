"""Exported networks that run without torch: what they say about themselves, and who runs them."""
