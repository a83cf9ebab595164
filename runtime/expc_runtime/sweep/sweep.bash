# shellcheck shell=bash
# The runner behind every sweep.sh, which sources it and calls `sweep`.
#
# Bash owns the processes: slots, process groups, signals, logs. A clerk (expc_runtime.sweep) owns
# the facts: it reads the plan, says what to start next and writes the state files. They talk
# through two pipes:
#   clerk -> here   start ID WORDS GPUS THREADS, then that many NUL-ended words: the log, the command
#                   signal ID SIGNAL | look | launcher | quit CODE
#   here -> clerk   started ID PID | ended ID CODE | again ID | stop SIGNAL | status
# An empty line follows each command: when a `read -t` is out of time just as a line ends, it has
# taken the newline and says that there was none.

(( BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404 )) || {
  echo "sweep: needs bash 4.4 or later; this is $BASH_VERSION" >&2
  exit 2
}

: "${experiment:?sweep.sh names it}" "${folder:?sweep.sh names it}"
python=${PYTHON:-python}
launch_py=$(dirname -- "${BASH_SOURCE[0]}")/../launch.py
declare -A pids=()    # of what runs, by id; each leads its own process group
launcher=()           # words that take the place of $python; empty: plain python
stopping='' killed=''

run() { record run "$@"; }
stage() { record stage "$@"; }
skip() { record skip "$@"; }
limit() { record limit "$@"; }
retry() { record retry "$@"; }
record() { printf '%s\0' "$#" "$@"; }
plan() { # one without its end was cut short
  ! declare -F policy >/dev/null || policy
  runs
  record end
}

usage() {
  cat <<USAGE
usage: $0 [--list | --status | --plan] [--only RUN-GLOB] [--jobs N] [--smoke | --no-smoke]
  (nothing)         run whatever is not proved done
  --list            print the commands, run nothing
  --status          print the table, run nothing
  --plan            print the plan for programs: NUL-ended words, each record led by their number
  --only RUN-GLOB   only runs whose name matches
  --jobs N          N runs at a time (or JOBS=N); one for each GPU, or one, if not given
  --smoke           two updates of each, in a folder of their own: does it run at all?
  --no-smoke        do not begin with two updates of every module that has never run
environment: PYTHON, JOBS, EXPC_LAUNCHER=0 (no fork launcher), EXPC_GRACE (seconds from TERM to KILL),
             GPUS or CUDA_VISIBLE_DEVICES (0,1: the GPUs that runs get; all when not set),
             OMP_NUM_THREADS (a run's threads; its share of the cores when not set),
             EXPC_PROGRESS (seconds between two lines of a running stage without a terminal; 60, 0: none)
signals: INT and TERM ask what runs to save and end, a second one kills; USR1 prints where things stand
USAGE
}

sweep() {
  local mode=clerk jobs=${JOBS-} root=runs/$experiment options=() rehearse=1
  while (( $# )); do
    case $1 in
      --list) mode=list ;;
      --status) mode=status ;;
      --plan) plan; return ;;
      --only | --jobs)
        (( $# > 1 )) || { echo "sweep: $1 takes a value" >&2; return 2; }
        if [[ $1 == --jobs ]]; then jobs=$2; else options+=(--only "$2"); fi
        shift ;;
      --smoke) options+=(--smoke); root+=.smoke rehearse='' ;;
      --no-smoke) rehearse='' ;;
      --help | -h) usage; return 0 ;;
      *) echo "sweep: there is no option $1" >&2; usage >&2; return 2 ;;
    esac
    shift
  done
  [[ $jobs =~ ^([1-9][0-9]*)?$ ]] || { echo "sweep: JOBS is a number from 1, not '$jobs'" >&2; return 2; }
  local clerk=("$python" -m expc_runtime.sweep "$mode" "$experiment" "$folder" "$python" "${options[@]}")
  if [[ $mode != clerk ]]; then
    "${clerk[@]}" < <(plan)
    return
  fi
  clerk+=(${jobs:+--jobs "$jobs"} --grace "${EXPC_GRACE:-60}" ${rehearse:+--rehearse})
  # shellcheck disable=SC2154  # sweep.sh may name who is told
  [[ -z ${notify[*]-} ]] || clerk+=(--notify "${notify[@]}")
  serve
}

# Take the root, start the clerk, obey it until it says quit.
serve() {
  mkdir -p -- "$root" || exit 74
  { exec {lock}>>"$root/.lock"; } 2>/dev/null || {
    echo "sweep: $root/.lock cannot be written" >&2
    exit 74
  }
  exec {console}>&1
  flock -n "$lock" || {
    echo "sweep: Locked: $root is in use by $(<"$root/.lock")" >&2
    exit 73
  }
  printf 'process %s on %s since %(%F %T)T\n' "$$" "$HOSTNAME" -1 >"$root/.lock"

  # One pass over the plan for the smoke runs, two to run it, one for the table.
  coproc CLERK {
    trap '' INT TERM HUP USR1
    exec "${clerk[@]}" 3>&"$console" 4< <(plan) 5< <(plan) 6< <(plan) 7< <(plan)
  }
  # shellcheck disable=SC2153  # coproc sets it
  from=${CLERK[0]} to=${CLERK[1]} clerk_pid=$CLERK_PID
  trap : PIPE
  trap 'stop INT' INT
  trap 'stop TERM' TERM
  trap 'stop HUP' HUP
  trap 'tell status' USR1
  trap leave EXIT

  local part line='' word a b c d code status
  local -
  set -f  # the words of a line are words
  while :; do
    reap
    [[ -z $stopping || -n $killed ]] || { uptime && (( now < deadline )); } || signal_all KILL
    IFS= read -r -t 1 part <&"$from"
    status=$?
    line+=$part  # the second may be over in the middle of a line
    (( status > 128 )) && continue
    (( status == 0 )) || clerk_gone
    # shellcheck disable=SC2086
    set -- $line
    line='' word=${1-} a=${2-} b=${3-} c=${4-} d=${5-}
    case $word in
      start)
        mapfile -d '' -t -n "$b" words <&"$from" || continue
        start "$a" "$c" "$d" "${words[0]#$'\n'}" "${words[@]:1}" ;;  # without the empty line
      signal) [[ -z ${pids[$a]-} ]] || signal "$b" "${pids[$a]}" ;;
      look) ;;  # something has ended
      launcher) start_launcher ;;
      quit) code=$a; break ;;
    esac
  done
  wait "$clerk_pid"
  exit "$code"
}

start() { # ID GPUS THREADS LOG COMMAND...; GPUS is - where there are none
  local id=$1 gpus=${2#-} threads=${OMP_NUM_THREADS:-$3} log=$4
  shift 4
  local command=("$@") env=(OMP_NUM_THREADS="$threads" ${gpus:+CUDA_VISIBLE_DEVICES="$gpus"})
  # The launcher forks modules; torchrun, which is one of python's own (-m), starts its ranks.
  (( ${#launcher[@]} )) && [[ $2 != -m ]] && command=("${launcher[@]}" -- "${@:2}")
  if ! { printf '$ %s' "${gpus:+CUDA_VISIBLE_DEVICES=$gpus }"; printf '%q ' "$@"; echo; } >>"$log"; then
    tell ended "$id" 74
    return
  fi
  { export "${env[@]}"; exec setsid "${command[@]}"; } >>"$log" 2>&1 </dev/null {lock}>&- {console}>&- &
  pids[$id]=$!
  tell started "$id" "$!"
  [[ -z $stopping ]] || signal TERM "$!"
}

reap() {
  local id
  for id in "${!pids[@]}"; do
    kill -0 "${pids[$id]}" 2>/dev/null || ended "$id"
  done
}

ended() { # ID
  local pid=${pids[$1]} code
  unset "pids[$1]"
  wait "$pid" 2>/dev/null
  code=$?
  kill -KILL -- "-$pid" 2>/dev/null  # what its leader left behind
  if (( code == 69 && ${#launcher[@]} )) && [[ -z $stopping ]]; then
    echo "sweep: the launcher is gone; going on with plain $python" >&2
    launcher=()
    tell again "$1"
    return
  fi
  tell ended "$1" "$code"
}

stop() { # SIGNAL; a second one does not wait
  if [[ -n $stopping ]]; then
    signal_all KILL
    return
  fi
  uptime
  stopping=$1 deadline=$((now + ${EXPC_GRACE:-60}))
  tell stop "$1"
  signal_all TERM
}

signal_all() { # SIGNAL
  local pid
  [[ $1 != KILL ]] || killed=1
  for pid in "${pids[@]}"; do signal "$1" "$pid"; done
}

signal() { # SIGNAL PID; the group does not exist until setsid has run
  kill "-$1" -- "-$2" 2>/dev/null || kill "-$1" "$2" 2>/dev/null
}

# Seconds of a clock that nobody sets (SECONDS follows the wall clock), into `now`. A `read` here, in
# a trap, would take the time limit off the `read` that it interrupts.
uptime() { { now=$(</proc/uptime); } 2>/dev/null && now=${now%%.*} || now=$SECONDS; }

tell() { # a trap may call it from within `IFS= read`, where words would be joined by nothing
  local IFS=' '
  { printf '%s\n' "$*" >&"$to"; } 2>/dev/null
}

clerk_gone() {
  local code
  wait "$clerk_pid"
  code=$?
  if (( code < 2 || code > 127 )); then  # else it has said why itself
    echo 'sweep: the clerk is gone; stopping what runs' >&2
    code=70
  fi
  stopping=1
  signal_all TERM
  uptime
  deadline=$((now + ${EXPC_GRACE:-60}))
  while (( ${#pids[@]} && now < deadline )); do reap; sleep 0.2; uptime; done
  signal_all KILL
  exit "$code"
}

# Start the server that later runs are forked from.
start_launcher() {
  local place
  [[ ${EXPC_LAUNCHER:-1} != 0 ]] || return 0
  place=$(mktemp -d -t expc.XXXXXX) || return 0
  setsid "$python" -m expc_runtime.launch serve "$place/launch" $$ \
    >>"$root/launcher.log" 2>&1 </dev/null {lock}>&- {console}>&- &
  launcher_pid=$! launcher_place=$place
  launcher=("$python" -I -S "$launch_py" run "$place/launch")
}

leave() {
  [[ -z ${launcher_pid-} ]] || { kill "$launcher_pid"; wait "$launcher_pid"; } 2>/dev/null
  [[ -z ${launcher_place-} ]] || rm -rf -- "$launcher_place"
}
