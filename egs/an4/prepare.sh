#!/usr/bin/env bash
# Prepare CMU AN4 (0.8 h of read names, dates, digits and commands) for training and decoding.
#
#   ./prepare.sh                               # download the corpus (92 MB), then all stages
#   ./prepare.sh --an4-dir /path/to/an4        # a corpus that you have: the folder with etc/ and wav/
#   ./prepare.sh --stage 2 --stop-stage 2      # one stage
#   ./prepare.sh --fold 2                      # fold 2 of 5 over all 84 speakers, in data/fold-2
#
# Stages that are done are skipped; remove their .done file, or the data folder, to do them again.

set -eou pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lowbit_k2/recipe/prepare_lib.sh"

option stage 0 "first stage to run"
option stop_stage 100 "last stage to run"
option an4_dir "" "an existing AN4 folder, used instead of a download"
option download_dir "" "where the corpus is downloaded (download)"
option data_dir "" "where all that is prepared goes (data)"
option fold 0 "1 to 5: test on a fifth of all speakers, train on the others; 0: the corpus's own test set"
option perturb_speed true "add copies of the training speech at 0.9 and 1.1 of the speed"
option vocab_size 100 "pieces of the BPE, which is made besides characters and phones"
option nj 1 "processes at a time"
parse_options "$@"
cd "$(dirname "${BASH_SOURCE[0]}")"

[[ $vocab_size =~ ^[0-9]+$ ]] || usage_error "--vocab-size takes a whole number, not '$vocab_size'"
url=https://github.com/cmusphinx/an4.git
download_dir=$(absolute "${download_dir:-$PWD/download}")
corpus_dir=$(absolute "${an4_dir:-$download_dir/an4}")
[[ $fold =~ ^[0-5]$ ]] || usage_error "--fold takes 0 to 5, not '$fold'"
default_data_dir=$PWD/data
if [ "$fold" -gt 0 ]; then default_data_dir=$PWD/data/fold-$fold; fi
data_dir=$(absolute "${data_dir:-$default_data_dir}")
made_from="corpus=$corpus_dir"
if [ "$fold" -gt 0 ]; then made_from="$made_from fold=$fold"; fi
manifest_dir=$data_dir/manifests
fbank_dir=$data_dir/fbank
dict_dir=$data_dir/dict
lm_dir=$data_dir/lm
transcript=$manifest_dir/transcript_train.txt
lang_dirs=("$data_dir/lang_char" "$data_dir/lang_phone" "$data_dir/lang_bpe_$vocab_size")

only_one "$data_dir" --data-dir
[ -n "$an4_dir" ] || only_one "$download_dir" --download-dir

if [ $stage -le 0 ] && [ $stop_stage -ge 0 ]; then
  log "Stage 0: corpus"
  if [ -n "$an4_dir" ]; then
    log "Taking the corpus that is at $corpus_dir"
  elif [ -d "$corpus_dir" ]; then
    log "Skipped, downloaded before: $corpus_dir"
  else
    command -v git >/dev/null || die "git is not installed: install it, or give --an4-dir"
    mkdir -p "$download_dir"
    rm -rf "$corpus_dir.partial"
    git clone --depth 1 "$url" "$corpus_dir.partial" || {
      rm -rf "$corpus_dir.partial"
      die "$url cannot be downloaded: get it by other means and give its folder with --an4-dir"
    }
    mv "$corpus_dir.partial" "$corpus_dir"
  fi
  [ -d "$corpus_dir/etc" ] && [ -d "$corpus_dir/wav" ] ||
    die "no AN4 at $corpus_dir: give --an4-dir the folder that holds etc/ and wav/"
fi

if [ $stage -le 1 ] && [ $stop_stage -ge 1 ]; then
  log "Stage 1: manifests"
  if needed "$manifest_dir/.done" "$made_from"; then
    "$python" local/prepare_manifests.py --corpus-dir "$corpus_dir" --manifest-dir "$manifest_dir" --fold "$fold"
    finish "$manifest_dir/.done" "$made_from"
  fi
fi

if [ $stage -le 2 ] && [ $stop_stage -ge 2 ]; then
  log "Stage 2: fbank"
  [ -f "$manifest_dir/.done" ] || die "no manifests in $manifest_dir: run stage 1 first"
  settings="$(cat "$manifest_dir/.done") perturb_speed=$perturb_speed"
  if needed "$fbank_dir/.done" "$settings"; then
    "$python" -m lowbit_k2.recipe.compute_fbank --corpus an4 --splits "train dev test" --manifest-dir "$manifest_dir" \
      --output-dir "$fbank_dir" --perturb-speed "$perturb_speed" --num-jobs "$nj"
    finish "$fbank_dir/.done" "$settings"
  fi
fi

# Does this Python have k2? The graphs need it; features, units and greedy decoding do not.
has_k2=$("$python" -c 'from lowbit_k2.k2_compat import has_k2; print(str(has_k2()).lower())')

if [ $stage -le 3 ] && [ $stop_stage -ge 3 ]; then
  log "Stage 3: units and lang directories: characters, phones, a BPE of $vocab_size pieces"
  [ -f "$manifest_dir/.done" ] || die "no manifests in $manifest_dir: run stage 1 first"
  if needed "$dict_dir/.done" "$made_from"; then
    "$python" local/prepare_dict.py --corpus-dir "$corpus_dir" --transcript "$transcript" --dict-dir "$dict_dir"
    finish "$dict_dir/.done" "$made_from"
  fi
  for lang_dir in "${lang_dirs[@]}"; do
    if needed "$lang_dir/.lang.done" "k2=$has_k2" again; then
      case $lang_dir in
        */lang_phone)
          "$python" -m lowbit_k2.recipe.prepare_lang --lang-dir "$lang_dir" --lexicon "$dict_dir/lexicon.txt"
          ;;
        *)
          model_type=bpe
          if [ "$lang_dir" = "$data_dir/lang_char" ]; then model_type=char; fi
          "$python" -m lowbit_k2.recipe.train_bpe --lang-dir "$lang_dir" --transcript "$transcript" \
            --model-type "$model_type" --vocab-size "$vocab_size"
          "$python" -m lowbit_k2.recipe.prepare_lang --lang-dir "$lang_dir" --words "$dict_dir/words.txt"
          ;;
      esac
      finish "$lang_dir/.lang.done" "k2=$has_k2"
    fi
  done
fi

if [ $stage -le 4 ] && [ $stop_stage -ge 4 ]; then
  log "Stage 4: 3- and 4-gram of the training transcripts, all words of the dictionary in them; bigrams of units"
  if needed "$lm_dir/.done" "orders=3,4" again; then
    [ -f "$data_dir/lang_char/words.txt" ] || die "no $data_dir/lang_char/words.txt: run stage 3 first"
    for order in 3 4; do
      "$python" -m lowbit_k2.recipe.make_lm --transcript "$transcript" --order $order \
        --words "$data_dir/lang_char/words.txt" --arpa "$lm_dir/${order}gram.arpa"
    done
    finish "$lm_dir/.done" "orders=3,4"
  fi
  for lang_dir in "${lang_dirs[@]}"; do units_ngram "$lang_dir" "$transcript"; done
fi

if [ $stage -le 5 ] && [ $stop_stage -ge 5 ]; then
  log "Stage 5: decoding graphs"
  if [ "$has_k2" = false ]; then
    log "Skipped: k2 is not installed, so there are no graphs; greedy search decodes without them"
  else
    [ -f "$lm_dir/4gram.arpa" ] || die "no $lm_dir/4gram.arpa: run stage 4 first"
    for lang_dir in "${lang_dirs[@]}"; do
      if needed "$lang_dir/.graphs.done" "lm=3gram topologies=ctc,chain" again; then
        compile_graphs "$lang_dir" --lm "$lm_dir/3gram.arpa"
        finish "$lang_dir/.graphs.done" "lm=3gram topologies=ctc,chain"
      fi
      # Words are numbered by lang directory, so each has its own.
      "$python" -m lowbit_k2.recipe.compile_g --lang-dir "$lang_dir" --lm "$lm_dir/4gram.arpa" --output "$lang_dir/G_4_gram.pt"
    done
  fi
fi

log "Done: $data_dir"
