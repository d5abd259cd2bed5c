#!/bin/sh
# Take another release of NiiVue into the package: sh update_niivue.sh 0.69.0
# Needs npm. Afterwards run tests/evaluation/test_report_browser.py and look at a report.
set -eu
version=${1:?which version? for instance: sh update_niivue.sh 0.69.0}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

npm install --prefix "$work" --ignore-scripts --omit=dev --omit=optional --no-audit --no-fund \
  "@niivue/niivue@$version"
cd "$work/node_modules"
cp "@niivue/niivue/dist/niivue.umd.js" "$here/niivue.umd.js"
{
  echo "niivue.umd.js is dist/niivue.umd.js of @niivue/niivue $version, unchanged. It contains"
  echo "parts of the packages below; NiiVue's own licence is in niivue.LICENSE.txt."
  find . -maxdepth 3 -iname 'license*' -type f | LC_ALL=C sort | while read -r licence; do
    package=$(dirname "$licence")
    printf '\n\n%s %s\n\n' "${package#./}" "$(node -p "require('$work/node_modules/$package/package.json').version")"
    tr -d '\r' <"$licence"
  done
} >"$here/niivue.dependencies.LICENSE.txt"
