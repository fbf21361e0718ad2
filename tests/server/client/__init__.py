"""The client against a real tritonserver: transports, many at once, broken networks, dead servers."""
