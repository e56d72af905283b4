"""The data doctor: what is wrong with a data set, what may harm training, and a mended copy."""
