"""Loading and saving Hub repositories, with and without weights of their own."""
