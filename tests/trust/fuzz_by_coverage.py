"""Fuzz one target by coverage, for as long as you like.

    make fuzz SECONDS=600      # every target, one after the other
    python tests/trust/fuzz_by_coverage.py nifti -max_total_time=600

Ends with a traceback and the file `crash-*` where bytes do worse than one line.
"""

import logging
import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
with atheris.instrument_imports(include=["pancreas_mtl", "nibabel", "yaml", "json", "csv"]):
    from trust.fuzz import FOLDER, SEEDS, TARGETS

logging.disable()
name, *options = sys.argv[1:]
corpus = FOLDER / f"corpus-{name}"
corpus.mkdir()
for number, seed in enumerate(SEEDS[name]):
    (corpus / str(number)).write_bytes(seed)
bounds = ["-rss_limit_mb=4000", "-timeout=20", "-print_final_stats=1"]
atheris.Setup([sys.argv[0], *bounds, *options, str(corpus)], TARGETS[name])
atheris.Fuzz()
