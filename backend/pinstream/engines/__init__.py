"""What runs a batch: one module per runtime, all behind the interface in base."""
