"""How the built-in model was made: pictures, network, training, export. Nothing that serves imports it."""
