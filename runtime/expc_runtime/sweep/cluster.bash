# shellcheck shell=bash
# Behind every slurm.sh and ray.sh, which source it and call `submit` or `drive`.
#
# The plan is that of sweep.sh beside them; what they add is what each stage asks of the cluster.
# expc_runtime.sweep.slurm and .ray read both and do the rest.

: "${experiment:?the script names it}" "${folder:?the script names it}"
python=${PYTHON:-python}

job() { printf '%s\0' "$#" "$@"; }

submit() { # ARGS of slurm.sh
  exec "$python" -m expc_runtime.sweep.slurm "$experiment" "$folder" "$python" "$@" \
    ${notify:+--notify "${notify[@]}"} 3< <(bash "$folder/sweep.sh" --plan) 4< <(jobs)
}

drive() { # ARGS of ray.sh
  exec "$python" -m expc_runtime.sweep.ray "$experiment" "$folder" "$python" "$@" \
    ${address:+--address "$address"} ${notify:+--notify "${notify[@]}"} \
    3< <(bash "$folder/sweep.sh" --plan) 4< <(jobs)
}
