"""The commands that talk to a running service, on the model that comes with the project."""
