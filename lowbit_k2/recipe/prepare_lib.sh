# Shell functions that every recipe's prepare.sh shares; source it after `set -eou pipefail`.
#
#   source "$(dirname "${BASH_SOURCE[0]}")/../../lowbit_k2/recipe/prepare_lib.sh"
#   option stage 0 "first stage to run"
#   parse_options "$@"
#   if [ $stage -le 0 ] && [ $stop_stage -ge 0 ]; then ... fi
#
# Sets `root` (the repository) and `python` (its interpreter), and lets Python find the package and the local/ scripts
# their neighbours.

caller_dir=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# The interpreter: $PYTHON if set, that of an active environment, the repository's .venv, or python3 on the path.
if [ -n "${PYTHON:-}" ]; then
  python=$PYTHON
elif [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$root/.venv/bin/python" ]; then
  python=$root/.venv/bin/python
else
  python=python3
fi

log() {
  echo "$(date '+%Y-%m-%d %H:%M:%S') ($(basename "$0")) $*"
}

# absolute PATH: a path of the user's, taken from the folder in which the script was called.
absolute() {
  case $1 in
    /*) echo "$1" ;;
    *) echo "$caller_dir/$1" ;;
  esac
}

# One line on stderr, and out.
die() {
  echo "error: $*" >&2
  exit 1
}

option_names=()
declare -A option_helps option_defaults

# option NAME DEFAULT HELP: define the variable NAME and the flag --NAME (underscores are written as dashes).
option() {
  printf -v "$1" '%s' "$2"
  option_names+=("$1")
  option_defaults[$1]=$2
  option_helps[$1]=$3
}

print_usage() {
  local name default
  echo "Usage: $0 [--flag value]..."
  for name in "${option_names[@]}"; do
    default=${option_defaults[$name]:+ (default: ${option_defaults[$name]})}
    printf '  --%-18s %s%s\n' "${name//_/-}" "${option_helps[$name]}" "$default"
  done
}

# parse_options "$@": set variables from `--foo-bar v` or `--foo-bar=v`. A flag whose default is true or false takes
# only these; one whose default is a whole number takes only whole numbers. Unknown flags are refused (status 2).
parse_options() {
  local flag name value
  while [ $# -gt 0 ]; do
    flag=$1
    shift
    case $flag in
      --help | -h) print_usage; exit 0 ;;
      --*=*) value=${flag#*=}; flag=${flag%%=*} ;;
      --*) [ $# -gt 0 ] || usage_error "$flag needs a value"; value=$1; shift ;;
      *) usage_error "'$flag' is not a flag" ;;
    esac
    name=${flag#--}
    name=${name//-/_}
    [ -n "$name" ] && [ -n "${option_helps[$name]+known}" ] || usage_error "unknown flag $flag"
    check_value "$flag" "${option_defaults[$name]}" "$value"
    printf -v "$name" '%s' "$value"
  done
}

usage_error() {
  echo "error: $*; $0 --help lists the flags" >&2
  exit 2
}

check_value() {
  local flag=$1 default=$2 value=$3
  case $default in
    true | false) [[ $value =~ ^(true|false)$ ]] || usage_error "$flag takes true or false, not '$value'" ;;
    *) [[ ! $default =~ ^-?[0-9]+$ || $value =~ ^-?[0-9]+$ ]] || usage_error "$flag takes a whole number, not '$value'" ;;
  esac
}

# needed GUARD SETTINGS [again]: true where the work that GUARD stands for is to be done. GUARD holds the settings that
# it was done with. Other settings are an error, because what was made from it would no longer fit; with `again` (cheap
# work, whose users have guards of their own) they mean that it is to be done again.
needed() {
  local guard=$1 settings=$2 before
  [ -f "$guard" ] || return 0
  before=$(cat "$guard")
  if [ "$before" = "$settings" ]; then
    log "Skipped, done before: $guard"
    return 1
  fi
  [ "${3:-}" = again ] || die "$guard says that it was made with '$before', not '$settings': remove $(dirname "$guard")," \
    "or choose another --data-dir"
  return 0
}

locked=()
trap 'for folder in ${locked[@]+"${locked[@]}"}; do rmdir "$folder" 2>/dev/null || true; done' EXIT  # those that stayed empty

# only_one FOLDER FLAG: end with one line where another process prepares the same folder. The lock is on the opened
# folder: it is gone when this script and whatever it has started have ended, however they are killed.
only_one() {
  local lock
  locked+=("$1")
  command -v flock >/dev/null || return 0
  mkdir -p "$1"
  exec {lock}<"$1"
  flock -n "$lock" || die "$1 is being prepared by another process: wait for it, or choose another $2"
}

# finish GUARD SETTINGS: the work is done and whole.
finish() {
  mkdir -p "$(dirname "$1")"
  printf '%s\n' "$2" >"$1.tmp"
  mv "$1.tmp" "$1"
}

# units_ngram LANG_DIR TRANSCRIPT: the bigrams of a lang directory's units, one for each topology of LF-MMI.
units_ngram() {
  local origin topology arpa
  origin="order=2 topologies=ctc,chain units=$(cat "$1/.lang.done" 2>/dev/null)"
  if needed "$1/.units.done" "$origin" again; then
    for topology in ctc chain; do
      arpa=$1/units_2gram.arpa
      [ $topology = ctc ] || arpa=$1/units_2gram_$topology.arpa
      "$python" -m lowbit_k2.recipe.make_lm --transcript "$2" --order 2 --units "$1" --topology $topology --arpa "$arpa"
    done
    finish "$1/.units.done" "$origin"
  fi
}

# compile_graphs LANG_DIR FLAGS...: HLG.pt and LG.pt, and for phones HLG_chain.pt.
compile_graphs() {
  local lang_dir=$1
  shift
  "$python" -m lowbit_k2.recipe.compile_hlg --lang-dir "$lang_dir" "$@"
  [[ $lang_dir != *lang_phone ]] || "$python" -m lowbit_k2.recipe.compile_hlg --lang-dir "$lang_dir" "$@" --topology chain
}
