"""`python -m gradwise`, the same as `gradwise`."""

from gradwise.cli import main

main()
