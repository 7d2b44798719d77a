"""Data of the lab: built-in sets, the usual files of them on disk, or a function of the user's.

`load` is the one entry. Everything it returns is a `Dataset`: four tensors that have been checked,
with what a training loop needs to know about them. Files are untrusted: pickles go through an
unpickler that imports nothing, archives are never unpacked to disk, images are measured before
they are decoded, and what is wrong is said in one sentence.
"""

from gradwise.lab.data.dataset import Dataset, from_arrays
from gradwise.lab.data.loader import available, load

__all__ = ["Dataset", "available", "from_arrays", "load"]
