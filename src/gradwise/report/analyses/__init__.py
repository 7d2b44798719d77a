"""Words, tables and pictures of the analyses, a module each."""
