"""`python -m mixlab`, and so `torchrun -m mixlab`."""

from mixlab.cli.main import main

main()
