"""Bad input, by the number: corpora, mutations and what has to hold for every one of them.

Everything is made from a seed, so that a number names an input: `python -m tests.fuzz.long` is the long form (`make
fuzz`), and tests/unit/test_fuzz.py and tests/server/test_fuzz.py are the short ones. tests/unit/test_fuzz_smallest.py
leaves what decides to hypothesis.
"""
