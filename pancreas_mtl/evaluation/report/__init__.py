"""The HTML report: `runs` reads, `charts` and `tables` show, `volumes` packs, `page` writes.

`svg` lends the charts the page's colours; `templates/` and `assets/` hold the page itself.
"""

from pancreas_mtl.evaluation.report.page import write_report

__all__ = ["write_report"]
