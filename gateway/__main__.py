"""`python -m gateway` is `spanbill`."""

from gateway.cli import main

main()
