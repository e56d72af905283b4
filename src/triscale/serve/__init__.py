"""A detector behind HTTP: requests in, batches through the network, JSON out."""
