"""The commands of `triscale`, one in each file: its arguments, and what it does with them."""
