"""What `pinstream tune` is made of: the settings there are, trying them on a server, and the search."""
