"""`python -m gradwise.cli`, the same as `gradwise`."""

from gradwise.cli import main

main()
