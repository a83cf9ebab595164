# shellcheck shell=bash
# The runner behind every sweep.sh, which sources it and calls `sweep`.
#
# Bash owns the processes: slots, process groups, signals, logs. A clerk (expc_runtime.sweep) owns
# the facts: it reads the plan, says what to start next and writes the state files. They talk
# through two pipes:
#   clerk -> here   start ID WORDS, then that many NUL-ended words: the log, the command
#                   look | launcher | quit CODE
#   here -> clerk   started ID PID | ended ID CODE | again ID | stop SIGNAL

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
record() { printf '%s\0' "$#" "$@"; }
plan() { runs; record end; }  # a plan without its end was cut short

usage() {
  cat <<USAGE
usage: $0 [--list | --status | --plan] [--only RUN-GLOB] [--jobs N] [--smoke | --no-smoke]
  (nothing)         run whatever is not proved done
  --list            print the commands, run nothing
  --status          print the table, run nothing
  --plan            print the plan for programs: NUL-ended words, each record led by their number
  --only RUN-GLOB   only runs whose name matches
  --jobs N          N runs at a time (or JOBS=N)
  --smoke           two updates of each, in a folder of their own: does it run at all?
  --no-smoke        do not begin with two updates of every module that has never run
environment: PYTHON, JOBS, EXPC_LAUNCHER=0 (no fork launcher), EXPC_GRACE (seconds from TERM to KILL),
             OMP_NUM_THREADS (a run's threads; its share of the cores when not set),
             EXPC_PROGRESS (seconds between two lines of a running stage without a terminal; 60, 0: none)
USAGE
}

sweep() {
  local mode=clerk jobs=${JOBS:-1} root=runs/$experiment options=() rehearse=1
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
      *) usage >&2; return 2 ;;
    esac
    shift
  done
  [[ $jobs =~ ^[1-9][0-9]*$ ]] || { echo "sweep: JOBS is a number from 1, not '$jobs'" >&2; return 2; }
  # Threads of runs that share the cores wait for each other: each run gets its share of them.
  local cores
  cores=$(getconf _NPROCESSORS_ONLN) || cores=1
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( cores > jobs ? cores / jobs : 1 ))}
  local clerk=("$python" -m expc_runtime.sweep "$mode" "$experiment" "$folder" "$python" "${options[@]}")
  if [[ $mode != clerk ]]; then
    "${clerk[@]}" < <(plan)
    return
  fi
  clerk+=(--jobs "$jobs" --grace "${EXPC_GRACE:-60}" ${rehearse:+--rehearse})
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
    trap '' INT TERM HUP
    exec "${clerk[@]}" 3>&"$console" 4< <(plan) 5< <(plan) 6< <(plan) 7< <(plan)
  }
  # shellcheck disable=SC2153  # coproc sets it
  from=${CLERK[0]} to=${CLERK[1]} clerk_pid=$CLERK_PID
  trap : PIPE
  trap 'stop INT' INT
  trap 'stop TERM' TERM
  trap 'stop HUP' HUP
  trap leave EXIT

  local word a b code status
  while :; do
    reap
    [[ -z $stopping || -n $killed ]] || (( SECONDS < deadline )) || signal_all KILL
    read -r -t 1 word a b <&"$from"
    status=$?
    (( status > 128 )) && continue
    (( status == 0 )) || clerk_gone
    case $word in
      start) mapfile -d '' -t -n "$b" words <&"$from" && start "$a" "${words[@]}" ;;
      look) ;;  # something has ended
      launcher) start_launcher ;;
      quit) code=$a; break ;;
    esac
  done
  wait "$clerk_pid"
  exit "$code"
}

start() { # ID LOG COMMAND...
  local id=$1 log=$2
  shift 2
  local command=("$@")
  (( ${#launcher[@]} )) && command=("${launcher[@]}" -- "${@:2}")
  { printf '$ '; printf '%q ' "$@"; echo; } >>"$log"
  setsid "${command[@]}" >>"$log" 2>&1 </dev/null {lock}>&- {console}>&- &
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
  stopping=$1 deadline=$((SECONDS + ${EXPC_GRACE:-60}))
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

tell() { { printf '%s\n' "$*" >&"$to"; } 2>/dev/null; }

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
  deadline=$((SECONDS + ${EXPC_GRACE:-60}))
  while (( ${#pids[@]} && SECONDS < deadline )); do reap; sleep 0.2; done
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
