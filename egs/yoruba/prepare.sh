#!/usr/bin/env bash
# Prepare read Yoruba (3 h of one speaker, texts with tone marks) for training and decoding.
#
#   ./prepare.sh                                  # download the corpus, then all stages
#   ./prepare.sh --corpus-dir /path/to/records    # a copy that you have: the folder with train, val, test and extra
#   ./prepare.sh --stage 2 --stop-stage 2         # one stage
#
# Stages that are done are skipped; remove their .done file, or the data folder, to do them again.

set -eou pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lowbit_k2/recipe/prepare_lib.sh"

option stage 0 "first stage to run"
option stop_stage 100 "last stage to run"
option corpus_dir "" "an existing folder with train, val, test and extra, used instead of a download"
option download_dir "" "where the corpus is downloaded (download)"
option data_dir "" "where all that is prepared goes (data)"
option perturb_speed false "add copies of the training speech at 0.9 and 1.1 of the speed"
option nj 1 "processes at a time"
parse_options "$@"
cd "$(dirname "${BASH_SOURCE[0]}")"

url=https://github.com/ogunlao/yoruba_speech_project.git
download_dir=$(absolute "${download_dir:-$PWD/download}")
corpus=$(absolute "${corpus_dir:-$download_dir/yoruba_speech_project/data/records}")
data_dir=$(absolute "${data_dir:-$PWD/data}")
made_from="corpus=$corpus"
manifest_dir=$data_dir/manifests
fbank_dir=$data_dir/fbank
lm_dir=$data_dir/lm
lang_dir=$data_dir/lang_char
transcript=$manifest_dir/transcript_train.txt

only_one "$data_dir" --data-dir
[ -n "$corpus_dir" ] || only_one "$download_dir" --download-dir

if [ $stage -le 0 ] && [ $stop_stage -ge 0 ]; then
  log "Stage 0: corpus"
  if [ -z "$corpus_dir" ] && [ ! -d "$corpus" ]; then
    command -v git >/dev/null || die "git is not installed: install it, or give --corpus-dir"
    mkdir -p "$download_dir"
    rm -rf "$download_dir/partial"
    git clone --depth 1 "$url" "$download_dir/partial" || {
      rm -rf "$download_dir/partial"
      die "$url cannot be downloaded: get it by other means and give its folder data/records with --corpus-dir"
    }
    mv "$download_dir/partial" "$download_dir/yoruba_speech_project"
  fi
  [ -d "$corpus/train" ] || die "no corpus at $corpus: give --corpus-dir the folder that holds train, val, test and extra"
  log "Taking the corpus that is at $corpus"
fi

if [ $stage -le 1 ] && [ $stop_stage -ge 1 ]; then
  log "Stage 1: manifests"
  if needed "$manifest_dir/.done" "$made_from"; then
    "$python" local/prepare_manifests.py --corpus-dir "$corpus" --manifest-dir "$manifest_dir"
    finish "$manifest_dir/.done" "$made_from"
  fi
fi

if [ $stage -le 2 ] && [ $stop_stage -ge 2 ]; then
  log "Stage 2: fbank"
  [ -f "$manifest_dir/.done" ] || die "no manifests in $manifest_dir: run stage 1 first"
  settings="$(cat "$manifest_dir/.done") perturb_speed=$perturb_speed"
  if needed "$fbank_dir/.done" "$settings"; then
    "$python" -m lowbit_k2.recipe.compute_fbank --corpus yoruba --splits "train dev test" --manifest-dir "$manifest_dir" \
      --output-dir "$fbank_dir" --perturb-speed "$perturb_speed" --num-jobs "$nj"
    finish "$fbank_dir/.done" "$settings"
  fi
fi

# Does this Python have k2? The graph needs it; features, units and greedy decoding do not.
has_k2=$("$python" -c 'from lowbit_k2.k2_compat import has_k2; print(str(has_k2()).lower())')

if [ $stage -le 3 ] && [ $stop_stage -ge 3 ]; then
  log "Stage 3: characters and the words of the training transcripts"
  [ -f "$manifest_dir/.done" ] || die "no manifests in $manifest_dir: run stage 1 first"
  if needed "$lang_dir/.lang.done" "k2=$has_k2" again; then
    "$python" -m lowbit_k2.recipe.train_bpe --lang-dir "$lang_dir" --transcript "$transcript" --model-type char
    "$python" -m lowbit_k2.recipe.prepare_lang --lang-dir "$lang_dir" --transcript "$transcript"
    finish "$lang_dir/.lang.done" "k2=$has_k2"
  fi
fi

if [ $stage -le 4 ] && [ $stop_stage -ge 4 ]; then
  log "Stage 4: 3-gram of the training transcripts"
  [ -f "$lang_dir/words.txt" ] || die "no $lang_dir/words.txt: run stage 3 first"
  "$python" -m lowbit_k2.recipe.make_lm --transcript "$transcript" --words "$lang_dir/words.txt" --arpa "$lm_dir/3gram.arpa"
fi

if [ $stage -le 5 ] && [ $stop_stage -ge 5 ]; then
  log "Stage 5: decoding graph"
  if [ "$has_k2" = false ]; then
    log "Skipped: k2 is not installed, so there is no graph; greedy search decodes without it"
  else
    [ -f "$lm_dir/3gram.arpa" ] || die "no $lm_dir/3gram.arpa: run stage 4 first"
    compile_graphs "$lang_dir" --lm "$lm_dir/3gram.arpa"
  fi
fi

log "Done: $data_dir"
