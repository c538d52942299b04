#!/usr/bin/env bash
# The whole way on the embedded corpus: make speech, train 2-bit and 1-bit weights together, decode, pack, decode again
# from the packed files. `make demo` calls it; about 15 minutes on two CPU cores. A second call goes on where the
# first one stopped.
set -eou pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lowbit_k2/recipe/prepare_lib.sh"

option exp_dir exp-mini/demo "the trained model goes here"
option num_epochs 10 "passes over the corpus"
option hours 1.0 "hours of speech to make"
parse_options "$@"
cd "$(dirname "${BASH_SOURCE[0]}")"

log "1/3 the corpus: synthetic speech, features, units, language model, decoding graph"
./prepare.sh --mini true --hours "$hours" --perturb-speed false

log "2/3 training: 2 bit, 1 bit and stochastic precision in every update"
"$python" ./train.py --mini true --exp-dir "$exp_dir" --precisions 2,1,sp --num-epochs "$num_epochs" --resume true

log "3/3 decoding at 2, 1.5 and 1 bit, from the checkpoint and from the packed file"
"$python" ./evaluate.py --mini true --exp-dir "$exp_dir" --precisions 2 1.5 1 --avg 3 --use-averaged-model true

log "The packed 1-bit recogniser:"
"$python" -m lowbit_k2.cli inspect "$exp_dir/packed/1bit.safetensors"
log "Try it: ./decode.py --mini true --packed $exp_dir/packed/1bit.safetensors --wav FILE..."
