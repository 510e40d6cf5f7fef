"""Loading and saving of Hub repositories, also of those that have no weights of their own."""
