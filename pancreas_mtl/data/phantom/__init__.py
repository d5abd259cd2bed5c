"""Phantom CT crops around the pancreas: data that anyone may have, with references.

statistics  sizes, volumes and difficulties to draw from
geometry    signed distance fields on the lattices of a crop
pancreas    head, body, tail and duct
lesions     the three subtypes
neighbours  vessels, bowel, solid organs, bone and fat around the pancreas
anatomy     one crop, before the scanner
scanner     slices, pixels, partial volume and noise
case        one finished case
files       a case's files in each layout
dataset     a whole dataset on disk
"""

from pancreas_mtl.data.phantom.case import PhantomCase, make_phantom
from pancreas_mtl.data.phantom.dataset import write_dataset
from pancreas_mtl.data.phantom.files import PhantomPlan

__all__ = ["PhantomCase", "PhantomPlan", "make_phantom", "write_dataset"]
