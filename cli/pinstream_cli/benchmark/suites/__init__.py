"""The suites of `pinstream bench`: one module each, one function `run` each."""
