#!/usr/bin/env bash
# The five-minute tour: train ClusPro on the built-in toy data with the built-in tiny CLIP, name what is in a folder, and put ClusPro and
# plain CLIP side by side on the test images. Everything it writes goes below runs/demo-*; run it with `make demo`.
set -euo pipefail

work=runs/demo-$(date +%Y%m%d-%H%M%S)
step() { printf '\n\033[1m$ %s\033[0m\n' "$*" >&2; "$@"; }

step czsl train --method zero-shot --out "$work" --name zero-shot
step czsl train --method clusPro --out "$work" --name clusPro
step czsl data export toy "$work/photos" --split test --limit 12
step czsl predict "$work/photos" --run "$work/clusPro" --top 3
step czsl evaluate "$work/clusPro"
step czsl compare "$work/zero-shot" "$work/clusPro"
