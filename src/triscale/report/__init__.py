"""What a run came to, as one page that says what to do next."""
