#!/bin/bash
# Measures the collectives of the evaluation report on 8 and 32 devices of four nodes: suites/communication.yaml.
#
#   sbatch slurm/comms_32card.sh                                     in the checkout
#   ASSAY_HOME=CHECKOUT sbatch CHECKOUT/slurm/comms_32card.sh        anywhere else
#   sbatch slurm/comms_32card.sh -o budget=20                        with options of `assay run`
#   sbatch -N 8 --gpus-per-node=4 slurm/comms_32card.sh              on nodes of 4 devices
#   ASSAY_PRESET=tiny sbatch -N 2 --time=10 slurm/comms_32card.sh    its small twin, on any allocation
#
# Nothing is edited here: partition, account and qos are sbatch's options or its SBATCH_* variables; everything else of a
# site stands in slurm/site.env (copy slurm/site.env.example). docs/slurm.md has more.
#SBATCH --job-name=assay-comms-32card
#SBATCH --nodes=4
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=02:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

home=${ASSAY_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
[[ -r $home/slurm/environment.sh ]] || home=$home/..
[[ -r $home/slurm/environment.sh ]] || {
    echo "assay: error: no assay checkout at ${home%/..}; submit from the checkout, or set ASSAY_HOME to it" >&2
    exit 2
}
# shellcheck source=slurm/environment.sh
source "$home/slurm/environment.sh"

run_suite "$ASSAY_HOME/suites/communication.yaml" "$@"
