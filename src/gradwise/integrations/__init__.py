"""Training libraries that gradwise is at home in, one module each.

`gradwise.integrations.lightning` has a Lightning callback, `.transformers` one for the Trainer, and
`.accelerate` a function. Each imports its library, and nothing imports them unasked.
"""
