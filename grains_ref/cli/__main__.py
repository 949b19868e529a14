"""`python -m grains_ref.cli` is `grains-ref`."""

from grains_ref.cli.commands import main

main()
