"""The HTML report of runs.

`runs` reads what is there and `about` says what it is; `tables`, `charts`, `score_charts` and
`cases` show it; `volumes` packs CTs (as `sheets`), masks and pictures; `page` writes the page from
`templates/` and `assets/`. `svg` lends the charts the page's colours.
"""

from pancreas_mtl.evaluation.report.page import write_report

__all__ = ["write_report"]
