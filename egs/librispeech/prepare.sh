#!/usr/bin/env bash
# Prepare LibriSpeech (960 h, 100 h or Mini LibriSpeech), or the embedded synthetic corpus, for training and decoding.
#
#   ./prepare.sh --mini true                          # embedded corpus, about 1 h, no download: data-mini/
#   ./prepare.sh                                      # LibriSpeech 960 h: data/
#   ./prepare.sh --full-libri false                   # train-clean-100 only
#   ./prepare.sh --mini-libri true                    # train-clean-5, dev-clean-2
#   ./prepare.sh --librispeech-dir /path/LibriSpeech  # a corpus that you have
#   ./prepare.sh --stage 3 --stop-stage 3             # one stage
#
# Stages that are done are skipped; remove their .done file, or the data folder, to do them again.

set -eou pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lowbit_k2/recipe/prepare_lib.sh"

option stage 0 "first stage to run"
option stop_stage 100 "last stage to run"
option mini false "make and use the embedded corpus instead of LibriSpeech"
option hours 1.0 "with --mini: hours of speech to make"
option full_libri true "all 960 h; false: train-clean-100"
option mini_libri false "Mini LibriSpeech (OpenSLR 31): train-clean-5, dev-clean-2"
option librispeech_dir "" "an existing LibriSpeech folder, used instead of a download"
option use_musan "" "prepare MUSAN for noise augmentation: true or false (true but with --mini)"
option musan_dir "" "an existing MUSAN folder, used instead of a download"
option download_dir "" "where corpora are downloaded or made (download, download-mini)"
option data_dir "" "where all that is prepared goes (data, data-mini)"
option perturb_speed true "add copies of the training speech at 0.9 and 1.1 of the speed"
option model_type "" "units: bpe or char (bpe, with --mini char)"
option vocab_size 500 "pieces of the BPE"
option lm_source "" "3-gram: openslr11 (download) or transcripts (of the training parts; with --mini)"
option rescoring "" "prepare a 4-gram for rescoring: true or false (true with --lm-source transcripts; download: 1.3 GB)"
option nj 2 "processes at a time"
option num_splits 1 "parts in which features of a corpus part are computed; finished ones survive an interruption"
parse_options "$@"
cd "$(dirname "${BASH_SOURCE[0]}")"

if [ "$mini" = true ] && [ "$mini_libri" = true ]; then
  usage_error "--mini and --mini-libri exclude each other"
fi
if [ "$mini" = true ] && [ -n "$librispeech_dir" ]; then
  usage_error "--mini makes its own corpus: leave out --librispeech-dir, or --mini"
fi

# What depends on the corpus, unless a flag says otherwise.
if [ "$mini" = true ]; then
  wanted_parts="train-clean-100 dev-clean test-clean"
  suffix=-mini default_musan=false default_model_type=char default_lm_source=transcripts
elif [ "$mini_libri" = true ]; then
  wanted_parts="train-clean-5 dev-clean-2"
  suffix="" default_musan=true default_model_type=bpe default_lm_source=openslr11
else
  wanted_parts="train-clean-100 dev-clean dev-other test-clean test-other"
  if [ "$full_libri" = true ]; then
    wanted_parts="$wanted_parts train-clean-360 train-other-500"
  fi
  suffix="" default_musan=true default_model_type=bpe default_lm_source=openslr11
fi
use_musan=${use_musan:-$default_musan}
model_type=${model_type:-$default_model_type}
lm_source=${lm_source:-$default_lm_source}
download_dir=$(absolute "${download_dir:-$PWD/download$suffix}")
data_dir=$(absolute "${data_dir:-$PWD/data$suffix}")
corpus_dir=$(absolute "${librispeech_dir:-$download_dir/LibriSpeech}")
given_musan_dir=$musan_dir
musan_dir=$(absolute "${musan_dir:-$download_dir/musan}")

default_rescoring=false
[ "$lm_source" = openslr11 ] || default_rescoring=true
rescoring=${rescoring:-$default_rescoring}
[[ $rescoring =~ ^(true|false)$ ]] || usage_error "--rescoring takes true or false, not '$rescoring'"
[[ $use_musan =~ ^(true|false)$ ]] || usage_error "--use-musan takes true or false, not '$use_musan'"
[[ $lm_source =~ ^(openslr11|transcripts)$ ]] || usage_error "--lm-source takes openslr11 or transcripts, not '$lm_source'"
[[ $model_type =~ ^(bpe|char)$ ]] || usage_error "--model-type takes bpe or char, not '$model_type'"
[[ $vocab_size =~ ^[0-9]+$ ]] || usage_error "--vocab-size takes a whole number, not '$vocab_size'"

manifest_dir=$data_dir/manifests
fbank_dir=$data_dir/fbank
lang_dir=$data_dir/lang_char
if [ "$model_type" = bpe ]; then
  lang_dir=$data_dir/lang_bpe_$vocab_size
fi
if [ "$lm_source" = openslr11 ]; then
  lm_dir=$download_dir/lm
  arpa=$lm_dir/3-gram.pruned.1e-7.arpa
  rescoring_arpa=$lm_dir/4-gram.arpa
else
  lm_dir=$data_dir/lm
  arpa=$lm_dir/3-gram.arpa
  rescoring_arpa=$lm_dir/4-gram.arpa
fi
transcript=$data_dir/transcript_words.txt

# The wanted parts that the corpus holds, whole; checked once.
usable_parts=""
find_usable_parts() {
  if [ -z "$usable_parts" ]; then
    usable_parts=$("$python" local/check_corpus.py --corpus-dir "$corpus_dir" --parts "$wanted_parts")
  fi
}

# The wanted parts whose manifests are there, training parts first; the stages after 1 go by them.
find_parts() {
  local part
  parts="" train_parts=""
  for part in $wanted_parts; do
    if [ -f "$manifest_dir/.librispeech_$part.done" ]; then
      parts="$parts $part"
      case $part in train*) train_parts="$train_parts $part" ;; esac
    fi
  done
  [ -n "$train_parts" ] || die "no manifests of $wanted_parts in $manifest_dir: run stage 1 first"
}

only_one "$data_dir" --data-dir
[ -n "$librispeech_dir" ] || only_one "$download_dir" --download-dir

if [ $stage -le 0 ] && [ $stop_stage -ge 0 ]; then
  log "Stage 0: corpus, MUSAN and language model"
  if [ -n "$librispeech_dir" ]; then
    log "Taking the corpus that is at $corpus_dir"
    find_usable_parts
  elif [ "$mini" = true ]; then
    if needed "$download_dir/.mini.done" "hours=$hours"; then
      "$python" local/make_mini_corpus.py --output-dir "$corpus_dir" --hours "$hours" --num-jobs "$nj"
      finish "$download_dir/.mini.done" "hours=$hours"
    fi
  else
    "$python" local/download_corpus.py --download-dir "$download_dir" --parts "$wanted_parts"
  fi
  if [ "$use_musan" = true ] && [ -z "$given_musan_dir" ]; then
    "$python" local/download_corpus.py --download-dir "$download_dir" --musan
  fi
  if [ "$lm_source" = openslr11 ]; then
    rescoring_flag=()
    [ "$rescoring" = false ] || rescoring_flag=(--rescoring)
    "$python" local/download_lm.py --output-dir "$lm_dir" "${rescoring_flag[@]}"
  fi
fi

if [ $stage -le 1 ] && [ $stop_stage -ge 1 ]; then
  log "Stage 1: manifests of LibriSpeech"
  find_usable_parts
  todo=""
  for part in $usable_parts; do
    if needed "$manifest_dir/.librispeech_$part.done" "corpus=$corpus_dir"; then
      todo="$todo $part"
    fi
  done
  if [ -n "$todo" ]; then
    "$python" local/prepare_manifests.py --corpus-dir "$corpus_dir" --parts "$todo" --manifest-dir "$manifest_dir" \
      --num-jobs "$nj"
    for part in $todo; do
      finish "$manifest_dir/.librispeech_$part.done" "corpus=$corpus_dir"
    done
  fi
fi

if [ $stage -le 2 ] && [ $stop_stage -ge 2 ]; then
  log "Stage 2: manifests of MUSAN"
  if [ "$use_musan" = false ]; then
    log "Skipped: --use-musan false"
  elif needed "$manifest_dir/.musan.done" "corpus=$musan_dir"; then
    "$python" -m lowbit_k2.recipe.prepare_musan --musan-dir "$musan_dir" --manifest-dir "$manifest_dir"
    finish "$manifest_dir/.musan.done" "corpus=$musan_dir"
  fi
fi

if [ $stage -le 3 ] && [ $stop_stage -ge 3 ]; then
  log "Stage 3: fbank of LibriSpeech"
  find_parts
  for part in $parts; do
    settings=$(cat "$manifest_dir/.librispeech_$part.done")
    case $part in train*) settings="$settings perturb_speed=$perturb_speed" ;; esac
    if needed "$fbank_dir/.librispeech_$part.done" "$settings"; then
      "$python" -m lowbit_k2.recipe.compute_fbank --corpus librispeech --splits "$part" --manifest-dir "$manifest_dir" \
        --output-dir "$fbank_dir" --perturb-speed "$perturb_speed" --num-jobs "$nj" \
        --num-splits "$num_splits"
      finish "$fbank_dir/.librispeech_$part.done" "$settings"
    fi
  done
fi

if [ $stage -le 4 ] && [ $stop_stage -ge 4 ]; then
  log "Stage 4: fbank of MUSAN"
  if [ "$use_musan" = false ]; then
    log "Skipped: --use-musan false"
  elif needed "$fbank_dir/.musan.done" "corpus=$musan_dir"; then
    "$python" -m lowbit_k2.recipe.compute_fbank --corpus musan --splits "music speech noise" --window 10 \
      --manifest-dir "$manifest_dir" --output-dir "$fbank_dir" --num-jobs "$nj"
    finish "$fbank_dir/.musan.done" "corpus=$musan_dir"
  fi
fi

if [ $stage -le 5 ] && [ $stop_stage -ge 5 ]; then
  log "Stage 5: transcripts and units: $(basename "$lang_dir")"
  find_parts
  if needed "$data_dir/.transcript.done" "parts=$train_parts" again; then
    "$python" local/write_transcript.py --manifest-dir "$manifest_dir" --parts "$train_parts" --output "$transcript"
    finish "$data_dir/.transcript.done" "parts=$train_parts"
  fi
  if needed "$lang_dir/.bpe.done" "parts=$train_parts"; then
    "$python" -m lowbit_k2.recipe.train_bpe --lang-dir "$lang_dir" --transcript "$transcript" \
      --model-type "$model_type" --vocab-size "$vocab_size"
    finish "$lang_dir/.bpe.done" "parts=$train_parts"
  fi
fi

# Does this Python have k2? The graphs need it; features, units and greedy decoding do not.
has_k2=$("$python" -c 'from lowbit_k2.k2_compat import has_k2; print(str(has_k2()).lower())')

if [ $stage -le 6 ] && [ $stop_stage -ge 6 ]; then
  log "Stage 6: lexicon and lang directory"
  find_parts
  if needed "$lang_dir/.lang.done" "parts=$train_parts lm=$lm_source k2=$has_k2" again; then
    words_flag=()
    if [ "$lm_source" = openslr11 ]; then
      words_flag=(--words "$lm_dir/librispeech-vocab.txt")
    fi
    "$python" -m lowbit_k2.recipe.prepare_lang --lang-dir "$lang_dir" --transcript "$transcript" "${words_flag[@]}"
    finish "$lang_dir/.lang.done" "parts=$train_parts lm=$lm_source k2=$has_k2"
  fi
fi

if [ $stage -le 7 ] && [ $stop_stage -ge 7 ]; then
  log "Stage 7: language models ($lm_source)"
  find_parts
  if [ "$lm_source" = openslr11 ]; then
    [ -f "$arpa" ] || die "$arpa does not exist: download it with --stage 0 --stop-stage 0"
    log "Taking $arpa"
  elif needed "$lm_dir/.lm.done" "parts=$train_parts rescoring=$rescoring" again; then
    "$python" -m lowbit_k2.recipe.make_lm --transcript "$transcript" --order 3 --words "$lang_dir/words.txt" --arpa "$arpa"
    if [ "$rescoring" = true ]; then
      "$python" -m lowbit_k2.recipe.make_lm --transcript "$transcript" --order 4 --words "$lang_dir/words.txt" \
        --arpa "$rescoring_arpa"
    fi
    finish "$lm_dir/.lm.done" "parts=$train_parts rescoring=$rescoring"
  fi
  units_ngram "$lang_dir" "$transcript"
fi

if [ $stage -le 8 ] && [ $stop_stage -ge 8 ]; then
  log "Stage 8: decoding graphs"
  find_parts
  if [ "$has_k2" = false ]; then
    log "Skipped: k2 is not installed, so there are no graphs; greedy search decodes without them"
  else
    if needed "$lang_dir/.graphs.done" "parts=$train_parts lm=$lm_source" again; then
      compile_graphs "$lang_dir" --lm "$arpa" --max-order 3
      finish "$lang_dir/.graphs.done" "parts=$train_parts lm=$lm_source"
    fi
    if [ "$rescoring" = true ]; then
      [ -f "$rescoring_arpa" ] || die "$rescoring_arpa does not exist: run stage 0 (download) or 7 (transcripts) first"
      "$python" -m lowbit_k2.recipe.compile_g --lang-dir "$lang_dir" --lm "$rescoring_arpa" --output "$lang_dir/G_4_gram.pt"
    fi
  fi
fi

log "Done: $data_dir"
