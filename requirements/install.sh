#!/usr/bin/env bash
# pip install into PYTHON's environment, with a line on how far it is and without pip's notes on its own settings:
#   requirements/install.sh PYTHON [pip's arguments...]
# --no-deps, as the pin sets are complete (requirements/README.md). Errors of pip are shown as they are.
set -euo pipefail
python=$1
shift
terminal=0
if [[ -t 1 ]]; then terminal=1; fi
"$python" -m pip install --disable-pip-version-check --no-input --progress-bar off --no-deps "$@" \
    2> >(grep -Ev '^ *(WARNING|DEPRECATION): ' >&2) |
    awk -v terminal="$terminal" '
        /^Collecting |^Requirement already satisfied: |^Processing |^Obtaining / {
            sub(/^Requirement already satisfied:/, "have")
            if (terminal) printf "\r\033[K  %d: %s %s", ++count, tolower($1), $2
            else if (++count % 50 == 0) printf "  %d: %s %s\n", count, tolower($1), $2
            fflush()
        }
        /^Installing collected packages/ { printf "%s  unpacking\n", terminal ? "\r\033[K" : ""; fflush(); unpacking = 1 }
        END { if (terminal && !unpacking) printf "\r\033[K" }'
