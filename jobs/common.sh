# shellcheck shell=bash
# shellcheck disable=SC2034
# What every job begins with. Needs REPO, the repository; gives PYTHON, say and requeue.

# shellcheck source=/dev/null
source "${SITE:-$REPO/jobs/site.env}"

if [[ -n ${MODULES:-} ]]; then
    type module &>/dev/null || source /etc/profile
    for module in $MODULES; do module load "$module"; done
fi
PYTHON=(python)
if [[ -n ${CONTAINER:-} ]]; then
    PYTHON=(apptainer exec --nv --bind "$REPO,$PWD${CONTAINER_BINDS:+,$CONTAINER_BINDS}" "$CONTAINER" python)
elif [[ -n ${VENV:-} || -d $REPO/.venv ]]; then
    export PATH="${VENV:-$REPO/.venv}/bin:$PATH"
fi
export PYTHONPATH="$REPO${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 # a job's log is read while it runs

say() { printf '%(%F %T)T %s: %s\n' -1 "$(uname -n)" "$*"; }

# Have Slurm run this job again from its start; does not come back.
requeue() {
    say "$*: requeued"
    # one task of an array bears the number of the array, which would requeue all of them
    scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
    sleep 300 # Slurm ends this job within seconds
    say "not ended by Slurm, which requeues no job of this kind"
    exit 75
}
