"""Networks for other programs: one file with what comes before and after the network inside."""
