"""Float64 oracles written from the equations alone, and the strategies that feed them.

Nothing in ``moments.py`` and ``transforms.py`` here imports torch or gradwise: they are the second
opinion, in plain numpy loops, that the package is held against.
"""

import pytest

# Helpers that assert: let their failures show both sides, as those in test files do.
pytest.register_assert_rewrite("reference.described", "reference.pairs")
