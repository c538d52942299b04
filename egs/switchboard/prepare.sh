#!/usr/bin/env bash
# Prepare Switchboard (300 h of telephone talk, LDC97S62) and its test sets, or embedded synthetic conversations.
#
#   ./prepare.sh --mini true                          # about 1 h of made conversations, no discs: data-mini/
#   ./prepare.sh --swbd-dir LDC97S62 --ms98-dir swb_ms98_transcriptions \
#     --eval2000-audio LDC2002S09 --eval2000-text LDC2002T43 --rt02-dir LDC2004S11 --rt03-dir LDC2007S10 \
#     --fisher-text LDC2004T19,LDC2005T19             # all that the recipe can use: data/
#   ./prepare.sh --swbd-dir ... --stage 3 --stop-stage 3   # one stage
#
# Stages that are done are skipped; remove their .done file, or the data folder, to do them again.

set -eou pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lowbit_k2/recipe/prepare_lib.sh"

option stage 0 "first stage to run"
option stop_stage 100 "last stage to run"
option mini false "make and use embedded conversations instead of LDC's discs"
option hours "" "with --mini: hours of training speech to make"
option swbd_dir "" "LDC97S62, Switchboard-1 release 2: the folder with all discs"
option ms98_dir "" "swb_ms98_transcriptions: ISIP's transcripts and dictionary, a download of its own"
option eval2000_audio "" "LDC2002S09, Hub5 2000 speech"
option eval2000_text "" "LDC2002T43, Hub5 2000 transcripts"
option rt02_dir "" "LDC2004S11, RT-02"
option rt03_dir "" "LDC2007S10, RT-03"
option fisher_text "" "LDC2004T19,LDC2005T19: Fisher's transcripts, for the language models only"
for name in eval2000 rt02 rt03; do
  option ${name}_stm "" "the STM of $name, where its discs hold several or none"
  option ${name}_glm "" "its GLM, likewise"
done
option musan_dir "" "MUSAN, where training is to use noise (train.py --enable-musan true)"
option download_dir "" "with --mini: where the conversations are made (download-mini)"
option data_dir "" "where all that is prepared goes (data, data-mini)"
option sampling_rate 8000 "Hz: 8000, the telephone's, or 16000, for models shared with wide-band speech"
option num_mel_bins 80 "mel bins; at 8000 Hz they end at 3.8 kHz"
option perturb_speed "" "add training speech at 0.9 and 1.1 of the speed (true, with --mini false)"
option dev_share "" "share of the callers that is held out for dev (0.01, with --mini 0.08)"
option noises false "keep [noise], [laughter] and [vocalized-noise] as words"
option partial_words true "keep words that were broken off, th- for th[at]-"
option max_bad 0.05 "share of spoilt segments of train and dev that is put up with"
option vocab_sizes "" "sizes of the BPEs ('500 1000 2000', with --mini none: characters)"
option lm_min_counts "" "least count of a word, pair, triple, ... that is kept (1,1,2,2, with --mini 1)"
option nj 2 "processes at a time"
option num_splits 1 "parts in which features are computed; finished ones survive an interruption"
parse_options "$@"
cd "$(dirname "${BASH_SOURCE[0]}")"

if [ "$mini" = true ]; then
  [ -z "$swbd_dir$ms98_dir$eval2000_audio$eval2000_text$rt02_dir$rt03_dir$fisher_text" ] ||
    usage_error "--mini makes its own discs: leave out theirs, or --mini"
  suffix=-mini default_perturb_speed=false default_dev_share=0.08 default_units=char default_min_counts=1
else
  [ -z "$hours" ] || usage_error "--hours goes with --mini true"
  [ -n "$swbd_dir" ] && [ -n "$ms98_dir" ] ||
    usage_error "give --swbd-dir (LDC97S62) and --ms98-dir (swb_ms98_transcriptions), or --mini true"
  suffix="" default_perturb_speed=true default_dev_share=0.01 default_units="500 1000 2000" default_min_counts=1,1,2,2
fi
perturb_speed=${perturb_speed:-$default_perturb_speed}
dev_share=${dev_share:-$default_dev_share}
units=${vocab_sizes:-$default_units}
lm_min_counts=${lm_min_counts:-$default_min_counts}
[[ $perturb_speed =~ ^(true|false)$ ]] || usage_error "--perturb-speed takes true or false, not '$perturb_speed'"
[[ $sampling_rate =~ ^(8000|16000)$ ]] || usage_error "--sampling-rate takes 8000 or 16000, not '$sampling_rate'"
[[ $units =~ ^(char|[0-9]+( [0-9]+)*)$ ]] || usage_error "--vocab-sizes takes whole numbers, not '$units'"
[[ $hours =~ ^([0-9]*\.?[0-9]+)?$ ]] || usage_error "--hours takes a number, not '$hours'"

download_dir=$(absolute "${download_dir:-$PWD/download$suffix}")
data_dir=$(absolute "${data_dir:-$PWD/data$suffix}")
if [ "$mini" = true ]; then
  corpus_dir=$download_dir/corpus
  swbd_dir=$corpus_dir/LDC97S62
  ms98_dir=$corpus_dir/swb_ms98_transcriptions
  eval2000_audio=$corpus_dir/LDC2002S09
  eval2000_text=$corpus_dir/LDC2002T43
else
  for name in swbd_dir ms98_dir {eval2000,rt02,rt03}_{stm,glm} eval2000_{audio,text} rt02_dir rt03_dir musan_dir; do
    [ -z "${!name}" ] || printf -v "$name" '%s' "$(absolute "${!name}")"
  done
  IFS=, read -ra folders <<<"$fisher_text"
  fisher_text=""
  for folder in "${folders[@]}"; do
    [ -z "$folder" ] || fisher_text=${fisher_text:+$fisher_text,}$(absolute "$folder")
  done
fi
manifest_dir=$data_dir/manifests
fbank_dir=$data_dir/fbank
dict_dir=$data_dir/dict
lm_dir=$data_dir/lm
transcript=$manifest_dir/transcript_train.txt
lm_text=$transcript
[ -z "$fisher_text" ] || lm_text=$lm_dir/text_with_fisher.txt
lang_dirs=()
for unit in $units; do
  case $unit in char) lang_dirs+=("$data_dir/lang_char") ;; *) lang_dirs+=("$data_dir/lang_bpe_$unit") ;; esac
done
vocabulary=${lang_dirs[-1]}/words.txt  # the dictionary's words and all of the training text
text_flags=(--noises "$noises" --partial-words "$partial_words")
feature_flags=(--sampling-rate "$sampling_rate" --num-mel-bins "$num_mel_bins")
[ "$sampling_rate" = 16000 ] || feature_flags+=(--low-freq 20 --high-freq -200)

# The test sets whose discs were given, with the folders of audio and of text.
test_sets=""
declare -A audio_of text_of
add_test_set() {
  [ -n "$2" ] || return 0
  test_sets="$test_sets $1" audio_of[$1]=$2 text_of[$1]=$3
}
[ -z "$eval2000_audio" ] || [ -n "$eval2000_text" ] ||
  usage_error "--eval2000-audio needs --eval2000-text (LDC2002T43): without it there is nothing to score against"
[ -z "$eval2000_text" ] || [ -n "$eval2000_audio" ] ||
  usage_error "--eval2000-text needs --eval2000-audio (LDC2002S09): without it there is nothing to decode"
add_test_set eval2000 "$eval2000_audio" "$eval2000_text"
add_test_set rt02 "$rt02_dir" "$rt02_dir"
add_test_set rt03 "$rt03_dir" "$rt03_dir"

only_one "$data_dir" --data-dir
[ "$mini" = false ] || only_one "$download_dir" --download-dir

if [ $stage -le 0 ] && [ $stop_stage -ge 0 ]; then
  log "Stage 0: what is on the discs"
  if [ "$mini" = true ] && needed "$download_dir/.mini.done" "hours=$hours"; then
    hours_flag=()
    [ -z "$hours" ] || hours_flag=(--hours "$hours")
    "$python" local/make_mini_corpus.py --output-dir "$corpus_dir" --num-jobs "$nj" "${hours_flag[@]}"
    finish "$download_dir/.mini.done" "hours=$hours"
  fi
  disc_flags=()
  for name in eval2000_audio eval2000_text rt02_dir rt03_dir fisher_text; do
    [ -z "${!name}" ] || disc_flags+=("--${name//_/-}" "${!name}")
  done
  "$python" local/check_discs.py --swbd-dir "$swbd_dir" --ms98-dir "$ms98_dir" "${disc_flags[@]}"
fi

if [ $stage -le 1 ] && [ $stop_stage -ge 1 ]; then
  log "Stage 1: manifests and transcripts of train and dev"
  settings="swbd=$swbd_dir ms98=$ms98_dir dev_share=$dev_share noises=$noises partial_words=$partial_words"
  if needed "$manifest_dir/.swbd.done" "$settings"; then
    "$python" local/prepare_manifests.py --swbd-dir "$swbd_dir" --ms98-dir "$ms98_dir" --manifest-dir "$manifest_dir" \
      --dev-share "$dev_share" --max-bad "$max_bad" "${text_flags[@]}"
    finish "$manifest_dir/.swbd.done" "$settings"
  fi
fi

if [ $stage -le 2 ] && [ $stop_stage -ge 2 ]; then
  log "Stage 2: manifests, STM and GLM of the test sets:${test_sets:- none given}"
  for name in $test_sets; do
    settings="audio=${audio_of[$name]} text=${text_of[$name]}"
    reference_flags=()
    for kind in stm glm; do
      file=${name}_$kind
      [ -z "${!file}" ] || { reference_flags+=("--$kind" "${!file}") && settings="$settings $kind=${!file}"; }
    done
    if needed "$manifest_dir/.$name.done" "$settings"; then
      "$python" local/prepare_eval.py --test-set "$name" --audio-dir "${audio_of[$name]}" --text-dir "${text_of[$name]}" \
        --data-dir "$data_dir" "${reference_flags[@]}"
      finish "$manifest_dir/.$name.done" "$settings"
    fi
  done
fi

if [ $stage -le 3 ] && [ $stop_stage -ge 3 ]; then
  log "Stage 3: fbank, $num_mel_bins bins at $sampling_rate Hz"
  [ -f "$manifest_dir/.swbd.done" ] || die "no manifests in $manifest_dir: run stage 1 first"
  parts="train dev"
  for name in $test_sets; do
    [ ! -f "$manifest_dir/.$name.done" ] || parts="$parts $name"
  done
  for part in $parts; do
    guard=$manifest_dir/.swbd.done
    [ ! -f "$manifest_dir/.$part.done" ] || guard=$manifest_dir/.$part.done
    settings="$(cat "$guard") rate=$sampling_rate bins=$num_mel_bins"
    [ "$part" != train ] || settings="$settings perturb_speed=$perturb_speed"
    if needed "$fbank_dir/.$part.done" "$settings"; then
      "$python" -m lowbit_k2.recipe.compute_fbank --corpus swbd --splits "$part" --manifest-dir "$manifest_dir" \
        --output-dir "$fbank_dir" --perturb-speed "$perturb_speed" "${feature_flags[@]}" --num-jobs "$nj" \
        --num-splits "$num_splits"
      finish "$fbank_dir/.$part.done" "$settings"
    fi
  done
  if [ -n "$musan_dir" ] && needed "$fbank_dir/.musan.done" "corpus=$musan_dir"; then
    "$python" -m lowbit_k2.recipe.prepare_musan --musan-dir "$musan_dir" --manifest-dir "$manifest_dir"
    "$python" -m lowbit_k2.recipe.compute_fbank --corpus musan --splits "music speech noise" --window 10 \
      --manifest-dir "$manifest_dir" --output-dir "$fbank_dir" "${feature_flags[@]}" --num-jobs "$nj"
    finish "$fbank_dir/.musan.done" "corpus=$musan_dir"
  fi
fi

has_dictionary=false
if [ -n "$(find -L "$ms98_dir" -iname sw-ms98-dict.text -print -quit 2>/dev/null)" ]; then
  has_dictionary=true
  lang_dirs=("$data_dir/lang_phone" "${lang_dirs[@]}")
fi

# Does this Python have k2? The graphs need it; features, units and greedy decoding do not.
has_k2=$("$python" -c 'from lowbit_k2.k2_compat import has_k2; print(str(has_k2()).lower())')

if [ $stage -le 4 ] && [ $stop_stage -ge 4 ]; then
  log "Stage 4: dictionary, units and lang directories: phones, $units"
  [ -f "$manifest_dir/.swbd.done" ] || die "no manifests in $manifest_dir: run stage 1 first"
  settings=$(cat "$manifest_dir/.swbd.done")
  words_flag=(--words "$dict_dir/words.txt")
  if [ "$has_dictionary" = false ]; then
    log "No sw-ms98-dict.text in $ms98_dir: no phones, and the words are those of the training text"
    words_flag=(--transcript "$transcript")
  elif needed "$dict_dir/.done" "$settings"; then
    "$python" local/prepare_dict.py --ms98-dir "$ms98_dir" --transcript "$transcript" --dict-dir "$dict_dir"
    finish "$dict_dir/.done" "$settings"
  fi
  for lang_dir in "${lang_dirs[@]}"; do
    if needed "$lang_dir/.lang.done" "$settings k2=$has_k2" again; then
      case $lang_dir in
        */lang_phone)
          "$python" -m lowbit_k2.recipe.prepare_lang --lang-dir "$lang_dir" --lexicon "$dict_dir/lexicon.txt"
          ;;
        *)
          size_flags=(--model-type char)
          case $lang_dir in */lang_bpe_*) size_flags=(--model-type bpe --vocab-size "${lang_dir##*_}") ;; esac
          "$python" -m lowbit_k2.recipe.train_bpe --lang-dir "$lang_dir" --transcript "$transcript" "${size_flags[@]}"
          "$python" -m lowbit_k2.recipe.prepare_lang --lang-dir "$lang_dir" "${words_flag[@]}"
          ;;
      esac
      finish "$lang_dir/.lang.done" "$settings k2=$has_k2"
    fi
  done
fi

if [ $stage -le 5 ] && [ $stop_stage -ge 5 ]; then
  log "Stage 5: 3- and 4-gram of the training text${fisher_text:+ and of Fisher}"
  [ -f "$vocabulary" ] || die "no $vocabulary: run stage 4 first"
  settings="$(cat "$manifest_dir/.swbd.done") fisher=$fisher_text min_counts=$lm_min_counts"
  if needed "$lm_dir/.done" "$settings" again; then
    if [ -n "$fisher_text" ]; then
      "$python" local/fisher_text.py --fisher-text "$fisher_text" --ms98-dir "$ms98_dir" --output "$lm_dir/fisher.txt" \
        "${text_flags[@]}"
      cat "$transcript" "$lm_dir/fisher.txt" >"$lm_text.tmp"
      mv "$lm_text.tmp" "$lm_text"
    fi
    for order in 3 4; do
      "$python" -m lowbit_k2.recipe.make_lm --transcript "$lm_text" --order $order --words "$vocabulary" \
        --min-counts "$(cut -d, -f "1-$order" <<<"$lm_min_counts")" --arpa "$lm_dir/${order}gram.arpa"
    done
    finish "$lm_dir/.done" "$settings"
  fi
  for lang_dir in "${lang_dirs[@]}"; do units_ngram "$lang_dir" "$transcript"; done
fi

if [ $stage -le 6 ] && [ $stop_stage -ge 6 ]; then
  log "Stage 6: decoding graphs"
  if [ "$has_k2" = false ]; then
    log "Skipped: k2 is not installed, so there are no graphs; greedy search decodes without them"
  else
    [ -f "$lm_dir/.done" ] || die "no language models in $lm_dir: run stage 5 first"
    for lang_dir in "${lang_dirs[@]}"; do
      if needed "$lang_dir/.graphs.done" "topologies=ctc,chain $(cat "$lm_dir/.done")" again; then
        compile_graphs "$lang_dir" --lm "$lm_dir/3gram.arpa"
        "$python" -m lowbit_k2.recipe.compile_g --lang-dir "$lang_dir" --lm "$lm_dir/4gram.arpa" \
          --output "$lang_dir/G_4_gram.pt"
        finish "$lang_dir/.graphs.done" "topologies=ctc,chain $(cat "$lm_dir/.done")"
      fi
    done
  fi
fi

log "Done: $data_dir"
