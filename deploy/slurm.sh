#!/usr/bin/env bash
# A run of rlpost over several nodes of SLURM: Ray's head on the first, a worker on each other, the run on the first.
#
#   sbatch deploy/slurm.sh generalpoints_ppo rollout.workers=2 rollout.gpus=1 learner.gpus=1
#
# Start it where `rlpost` may write outputs/ on a file system that every node sees. RLPOST_VENV names the virtual
# environment, also seen by every node; without it, .venv in the folder of `sbatch`.
# rollout.workers x rollout.gpus + learner.workers x learner.gpus must not exceed the GPUs of all nodes.
#SBATCH --job-name=rlpost
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --output=rlpost-%j.log
set -euo pipefail

if [[ $# -eq 0 ]]; then
    echo "usage: sbatch deploy/slurm.sh EXPERIMENT [key=value ...]" >&2
    exit 2
fi

join_timeout_s=180
PATH="${RLPOST_VENV:-$SLURM_SUBMIT_DIR/.venv}/bin:$PATH"
export PATH RAY_USAGE_STATS_ENABLED=0
export RAY_worker_niceness=0 # Ray's default of 15 starves actors on a busy node

# Whoever reaches Ray's port could run code as this user, so Ray asks for a token that only this job knows.
RAY_AUTH_TOKEN="$(python -c 'import secrets; print(secrets.token_hex(32))')"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head="${nodes[0]}"
# Debian's /etc/hosts maps a node's own name to loopback, so Ray is asked instead: the address of the default route.
head_ip="$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    python -c 'import ray; print(ray.util.get_node_ip_address())')"
address="$head_ip:$((20000 + SLURM_JOB_ID % 10000))"

ray_processes=()
run=""
# Ray's processes end with the job, however it ends; SIGTERM (the time limit is near) reaches the run, which keeps its
# last checkpoint: sbatch deploy/slurm.sh resume=RUN goes on.
# shellcheck disable=SC2329 # the trap calls it
end_ray() {
    [[ ${#ray_processes[@]} -eq 0 ]] || kill "${ray_processes[@]}" 2> /dev/null || true
    wait
}
trap end_ray EXIT
trap 'if [[ -n $run ]]; then kill -TERM "$run"; else exit 143; fi' TERM

start_ray() { # NODE OPTION...
    local node="$1"
    shift
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" ray start --block --disable-usage-stats \
        --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" "$@" &
    ray_processes+=("$!")
}

start_ray "$head" --head --node-ip-address="$head_ip" --port="${address##*:}" --include-dashboard=false \
    --temp-dir="/tmp/rlpost-ray-$SLURM_JOB_ID"
for node in "${nodes[@]:1}"; do
    start_ray "$node" --address="$address"
done

# The run refuses to ask for more than the cluster has, so every node must be there before it starts.
python - "$address" "${#nodes[@]}" "$join_timeout_s" << 'EOF_PYTHON'
import sys
import time

import ray

address, wanted, timeout_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
deadline, alive = time.monotonic() + timeout_s, []
while len(alive) < wanted:
    if time.monotonic() > deadline:
        names = ", ".join(alive) or "none"
        sys.exit(f"{len(alive)} of {wanted} nodes joined Ray at {address} within {timeout_s:g} s: {names}")
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        alive = [node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]
    except (ConnectionError, RuntimeError):  # the head is not up yet
        pass
    time.sleep(1)
EOF_PYTHON

rlpost "$@" ray.address="$address" &
run=$!
code=0
wait "$run" || code=$?
# A signal interrupts `wait`; the run is still ending, and its exit code is the job's.
while kill -0 "$run" 2> /dev/null; do
    code=0
    wait "$run" || code=$?
done
exit "$code"
