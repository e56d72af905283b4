"""Weights from elsewhere: GluonCV's and Darknet's files, and their names in our networks."""
