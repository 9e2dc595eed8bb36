#!/usr/bin/env bash
# A run on the nodes of a SLURM job: Ray is started on each of them, the run on the first, and all of it ends together.
#
#   sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=64 launch/clusters/slurm.sh configs/cifar/rn18-rice.yaml updates=100
#
# Submitted again (or put back into the queue by --requeue), the run goes on from its last whole checkpoint. Fifteen words of
# SLURM are enough here; partitions, accounts and containers are your site's: add them to the #SBATCH lines.
#SBATCH --job-name=robust-train
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
set -euo pipefail
[ $# -gt 0 ] || { echo "name a run: sbatch launch/clusters/slurm.sh RUN.yaml [key=value ...]" >&2; exit 2; }

tree=${ROBUST_TRAIN_TREE:-${SLURM_SUBMIT_DIR:?not inside a SLURM job: sbatch this script}}
bin=${ROBUST_TRAIN_BIN:-$tree/.venv/bin}
port=${RAY_PORT:-$((20000 + SLURM_JOB_ID % 20000))} # two jobs on one node do not meet
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:?SLURM_CPUS_ON_NODE is not set}}
gpus=${SLURM_GPUS_ON_NODE:-0}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}

# A token of this job's own: whoever else is on these nodes cannot send work to its Ray.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}
export RAY_AUTH_TOKEN

cd "$tree"
start=("$bin/ray" start --block --disable-usage-stats --num-cpus="$cpus" --num-gpus="$gpus")
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  "${start[@]}" --head --node-ip-address="$head" --port="$port" --include-dashboard=false &
for node in "${nodes[@]:1}"; do
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" "${start[@]}" --address="$head:$port" &
done

devices=$((gpus > 0 ? gpus * ${#nodes[@]} : ${#nodes[@]}))
each=$((gpus > 0 ? cpus / gpus : cpus))
settings=(cluster.address="$head:$port" cluster.devices="$devices" cluster.cpus="$each")
[ "$gpus" -eq 0 ] || settings+=(cluster.gpu=true)

# Until the nodes have joined, Ray would refuse the run for want of room.
for _ in $(seq 120); do
  joined=$("$bin/python" -m launch.doctor --count --address "$head:$port" 2>/dev/null || echo 0)
  [ "$joined" -ge "${#nodes[@]}" ] && break
  sleep 1
done
if [ "${joined:-0}" -lt "${#nodes[@]}" ]; then
  echo "only ${joined:-0} of ${#nodes[@]} nodes joined Ray at $head:$port within two minutes; see the lines above" >&2
  exit 1
fi

"$bin/python" -m launch.train "$@" "${settings[@]}" &
run=$!
trap 'kill -TERM "$run" 2>/dev/null || true' TERM # --signal: time for a checkpoint before the job's end
code=0
wait "$run" || code=$?
wait "$run" 2>/dev/null || true
# the raylets end with the job's last step
kill %1 2>/dev/null || true
jobs -p | xargs -r kill 2>/dev/null || true
exit "$code"
