"""What the network will see in training, for people: samples, drawings, figures, a page."""
