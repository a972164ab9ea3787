# What the scripts of this folder share. They source it; it is not run by itself.
#
# Slurm runs a copy of a script out of its spool, so a script cannot find its neighbours by its own path: it looks where
# it was submitted, puts what it found into `home`, and sources this file. From then on
#   ASSAY_HOME      is the checkout, and slurm/site.env has been read into the environment,
#   ASSAY_PYTHON    is the Python that runs `assay`, ASSAY_RUNS the folder that run folders are made in,
#   ASSAY_NODE_*, ASSAY_SRUN_OPTIONS   tell the launcher how ranks get into a container, where a site uses one,
# and `run_suite SUITE …` turns the job into `assay run`.
# docs/slurm.md explains every setting.
# shellcheck shell=bash

refuse() { # refuse SENTENCE: the sentence, and the exit code of bad input
    echo "assay: error: $1" >&2
    exit 2
}

[[ -n ${SLURM_JOB_ID:-} ]] || refuse "this is no Slurm job; submit the script with sbatch, or start it inside an salloc"
ASSAY_HOME=$(cd "${home:?set by the script}" && pwd)

if [[ -r $ASSAY_HOME/slurm/site.env ]]; then
    # Modules and activation scripts of a site are seldom written for -e and -u. What it sets, ranks must see: -a.
    set +eu -a
    # shellcheck source=slurm/site.env.example
    source "$ASSAY_HOME/slurm/site.env"
    set -eu +a
fi

case ${ASSAY_PRESET:-full} in
full | tiny) ;;
*) refuse "ASSAY_PRESET=$ASSAY_PRESET: expected tiny, or full, which is the default" ;;
esac

ASSAY_PYTHON=${ASSAY_PYTHON:-$ASSAY_HOME/.venv/bin/python}
command -v "$ASSAY_PYTHON" >/dev/null ||
    refuse "no Python at $ASSAY_PYTHON; run make quick in $ASSAY_HOME, or name another as ASSAY_PYTHON in slurm/site.env"

# One rank a device. Not SLURM_GPUS_ON_NODE: of an exclusive node it counts all devices, whatever was asked for.
asked=${SLURM_GPUS_PER_NODE:-0}
asked=${asked##*:} # of a type and a number, a100:4, the number
[[ $asked =~ ^[1-9][0-9]*$ ]] || asked=8
ASSAY_RANKS_PER_NODE=${ASSAY_RANKS_PER_NODE:-$asked}

ASSAY_RUNS=${ASSAY_RUNS:-$ASSAY_HOME/runs}
mkdir -p "$ASSAY_RUNS" 2>/dev/null ||
    refuse "no run folders can be made in $ASSAY_RUNS; name another folder as ASSAY_RUNS in slurm/site.env"
ASSAY_RUNS=$(cd "$ASSAY_RUNS" && pwd)

if [[ -n ${ASSAY_CONTAINER:-} ]]; then
    [[ $ASSAY_CONTAINER != /* || -e $ASSAY_CONTAINER ]] ||
        refuse "no image at $ASSAY_CONTAINER; correct ASSAY_CONTAINER in slurm/site.env"
    # The ranks' code and their records lie at the same paths inside as outside.
    mounts=$ASSAY_HOME:$ASSAY_HOME,$ASSAY_RUNS:$ASSAY_RUNS${ASSAY_CONTAINER_MOUNTS:+,$ASSAY_CONTAINER_MOUNTS}
    # The launcher splits these at blanks, as a shell does.
    printf -v image %q "$ASSAY_CONTAINER"
    printf -v mounts %q "$mounts"
    case ${ASSAY_CONTAINER_ENGINE:-} in
    pyxis)
        mine="--container-image=$image --container-mounts=$mounts ${ASSAY_CONTAINER_OPTIONS:-}"
        ASSAY_SRUN_OPTIONS="${ASSAY_SRUN_OPTIONS:+$ASSAY_SRUN_OPTIONS }$mine"
        ;;
    apptainer) ASSAY_NODE_PREFIX="apptainer exec ${ASSAY_CONTAINER_OPTIONS---nv} --bind $mounts $image" ;;
    *) refuse "ASSAY_CONTAINER_ENGINE=${ASSAY_CONTAINER_ENGINE:-}: expected pyxis or apptainer; set it in slurm/site.env" ;;
    esac
    ASSAY_NODE_PYTHON=${ASSAY_NODE_PYTHON:-python3} # the image's own
    PYTHONPATH=$ASSAY_HOME${PYTHONPATH:+:$PYTHONPATH} # this checkout, not the copy in the image
    export ASSAY_SRUN_OPTIONS ASSAY_NODE_PREFIX ASSAY_NODE_PYTHON PYTHONPATH
fi

export ASSAY_HOME
export PYTHONUNBUFFERED=1     # the job's output can be followed while it runs
export SLURM_EXPORT_ENV=ALL   # after `sbatch --export=NONE`, srun would start ranks in an empty environment

run_suite() { # run_suite SUITE [OPTION …]: becomes `assay run`, whose exit code is the job's
    local suite=$1 name
    shift
    name=${suite##*/}
    name=${name%.yaml}
    if [[ ${ASSAY_PRESET:-full} == tiny ]]; then
        # train-8 and train-32 differ in size only: their twin takes the whole allocation.
        [[ $name =~ ^(.+)-[0-9]+$ ]] && name=${BASH_REMATCH[1]}
        suite=$ASSAY_HOME/suites/$name-tiny.yaml
        [[ -r $suite ]] || refuse "there is no small twin at $suite; submit without ASSAY_PRESET=tiny"
        name=$name-tiny
    fi
    # Named by the job, the folder is found again when Slurm requeues the job: what has passed is kept. With exec,
    # signals reach the runner itself.
    exec "$ASSAY_PYTHON" -m assay run "$suite" --launcher slurm -n "$ASSAY_RANKS_PER_NODE" \
        --folder "$ASSAY_RUNS/$name-$SLURM_JOB_ID" "$@"
}
