#!/usr/bin/env bash
# The whole recipe on embedded conversations: make discs, prepare them, train a float model and one of 2 and 1 bit,
# pack, decode and score by NIST's rules. Less than 20 minutes on two CPU cores. A second call goes on where the first
# one stopped.
set -eou pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lowbit_k2/recipe/prepare_lib.sh"

option exp_root exp-mini "the trained models go here"
option num_epochs 10 "passes over the corpus"
option hours "" "of training speech to make (1.2)"
option lm_scale 1.2 "of the decoding graph; chosen on dev"
option output "" "also write the scores to this file, as JSON (results/mini.json: RESULTS.md's)"
parse_options "$@"
cd "$(dirname "${BASH_SOURCE[0]}")"
average=$((num_epochs < 3 ? num_epochs : 3))

log "1/4 discs of made conversations, features, units, language models, decoding graphs"
./prepare.sh --mini true --hours "$hours"

log "2/4 training: float"
"$python" ./train.py --mini true --exp-dir "$exp_root/float" --precisions 32 --num-epochs "$num_epochs" --resume true

log "3/4 training: 2 bit, 1 bit and stochastic precision in every update"
"$python" ./train.py --mini true --exp-dir "$exp_root/demo" --precisions 2,1,sp --num-epochs "$num_epochs" --resume true

log "4/4 decoding, packing and scoring: float, 2, 1.5 and 1 bit"
"$python" ./evaluate.py --mini true --exp-dir "$exp_root/demo" --float-exp-dir "$exp_root/float" --precisions 2 1.5 1 \
  --avg "$average" --use-averaged-model true --lm-scale "$lm_scale" ${output:+--output "$output"}
