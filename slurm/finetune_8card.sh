#!/bin/bash
# Fine-tunes by Alpaca-LoRA, int8 on and off, and InternLM-7B as a whole, on 8 devices of one node: suites/finetune-8.yaml.
#
#   sbatch slurm/finetune_8card.sh                                 in the checkout
#   ASSAY_HOME=CHECKOUT sbatch CHECKOUT/slurm/finetune_8card.sh    anywhere else
#   sbatch slurm/finetune_8card.sh -o steps=200                    with options of `assay run`
#   sbatch -N 2 --gpus-per-node=4 slurm/finetune_8card.sh          on nodes of 4 devices
#   ASSAY_PRESET=tiny sbatch --time=10 slurm/finetune_8card.sh     its small twin, seconds long
#
# Nothing is edited here: partition, account and qos are sbatch's options or its SBATCH_* variables; everything else of a
# site stands in slurm/site.env (copy slurm/site.env.example). docs/slurm.md has more.
#SBATCH --job-name=assay-finetune-8card
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=12:00:00
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

run_suite "$ASSAY_HOME/suites/finetune-8.yaml" "$@"
