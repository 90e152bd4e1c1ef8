#!/usr/bin/env bash
# The five-minute tour: train ClusPro on the built-in toy data with the built-in tiny CLIP, evaluate it, name what is in a folder.
# Everything it writes goes below runs/demo-*; run it with `make demo`.
set -euo pipefail

work=runs/demo-$(date +%Y%m%d-%H%M%S)
step() { printf '\n\033[1m$ %s\033[0m\n' "$*" >&2; "$@"; }

step czsl train --method zero-shot --out "$work" --name zero-shot
step czsl train --method clusPro --out "$work" --name clusPro
step czsl evaluate "$work/zero-shot"
step czsl evaluate "$work/clusPro"
step czsl data export toy "$work/photos" --split test --limit 12
step czsl predict "$work/photos" --run "$work/clusPro" --top 3
