"""`python -m pinstream_cli` is `pinstream`."""

from pinstream_cli.main import main

main(prog_name="pinstream")
