#!/bin/bash
# Runs any suite in one allocation: a file, or the name of a shipped suite (`assay list`).
#
#   sbatch -N 4 slurm/suite.sh communication                             in the checkout
#   ASSAY_HOME=CHECKOUT sbatch -N 4 CHECKOUT/slurm/suite.sh mine.yaml    anywhere else
#   sbatch -N 2 slurm/suite.sh mine.yaml -o world=16                     with options of `assay run`
#   sbatch -N 2 --gpus-per-node=4 slurm/suite.sh mine.yaml               on nodes of 4 devices
#   ASSAY_PRESET=tiny sbatch --time=10 slurm/suite.sh train-8            its small twin, suites/train-tiny.yaml
#
# Nothing is edited here: partition, account and qos are sbatch's options or its SBATCH_* variables; everything else of a
# site stands in slurm/site.env (copy slurm/site.env.example). docs/slurm.md has more.
#SBATCH --job-name=assay-suite
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
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

(($#)) || refuse "no suite; name one behind the script, for example: sbatch -N 4 slurm/suite.sh communication"
run_suite "$@"
