#!/usr/bin/env bash
# From a corpus to sound in one command on the login node: preprocess, merge, train, then generate and evaluate. Each
# step waits for the step before it; if that fails, it is cancelled. The cluster's settings are in jobs/site.env.
#
#   jobs/submit.sh delay_gpt2
#   jobs/submit.sh delay_gpt2 --preprocess data=jamendo data.root=/data/mtg --train model=medium trainer.steps=500000
#   jobs/submit.sh delay_gpt2 codec.codebooks=4 --generate 'prompt=[a.wav,b c.wav]' seconds=10 --evaluate n=256
#   jobs/submit.sh delay_gpt2 --from train          the dataset exists already
#   jobs/submit.sh delay_gpt2 --dry-run             print what would be submitted
#
# The first argument is an experiment of conf/exp. Settings directly after it apply to preprocess and train; settings
# after --preprocess, --train, --generate or --evaluate apply to that step. --shards DIR and --run DIR set the dataset
# and the run folder of all steps (default: shards/DATA and runs/EXPERIMENT), so run= and shards= are refused. The
# settings of all steps are validated before submission; --unchecked skips this, for a login node without the Python
# package. Logs are in RUN/slurm. Running the same command again resumes where the last one stopped.
set -Eeuo pipefail
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export REPO
# shellcheck source=jobs/common.sh
source "$REPO/jobs/common.sh"

refuse() {
    echo "error: $*" >&2
    exit 2
}

if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit
fi

STEPS=(preprocess merge train generate evaluate)
experiment=${1:-}
[[ -n $experiment && $experiment != -* ]] || refuse "expected an experiment as the first argument: jobs/submit.sh delay_gpt2 (see --help)"
[[ -f $REPO/conf/exp/$experiment.yaml ]] || refuse "there is no conf/exp/$experiment.yaml"
shift

shards='' run="runs/$experiment" from=preprocess data=nsynth dry_run='' unchecked='' step=both
both=() shared=() preprocess=() train=() generate=() evaluate=() # settings by the name of the step
while (($#)); do
    case $1 in
    --shards | --run | --from)
        (($# > 1)) || refuse "$1: expected a value after it"
        printf -v "${1#--}" %s "$2"
        shift
        ;;
    --dry-run) dry_run=yes ;;
    --unchecked) unchecked=yes ;;
    --preprocess | --train | --generate | --evaluate) step=${1#--} ;;
    --*) refuse "there is no option $1" ;;
    run=*) refuse "$1: set the run of all steps by --run DIR (now $run)" ;;
    *)
        case $step:$1 in # the steps would no longer share a dataset
        both:shards=* | preprocess:shards=* | both:out=* | preprocess:out=*)
            refuse "$1: set the dataset of all steps by --shards DIR; --generate out=... sets the folder of the audio files"
            ;;
        esac
        declare -n settings=$step
        settings+=("$1")
        [[ $1 != data=* || $step == train ]] || data=${1#data=}
        ;;
    esac
    shift
done
[[ " ${STEPS[*]} " == *" $from "* ]] || refuse "--from $from: expected one of ${STEPS[*]}"
shards=${shards:-shards/$data}

hydra_quote() { # a value in Hydra's quotes, in which a backslash is special only before a quote
    local value=$1
    printf "'%s'" "${value//\'/\\\'}"
}

sbatch_options() { # KIND NODES RANKS GPUS; KIND: of the variables of the site
    local option kind=$1 gpus=$4
    local -n cpus=$1_CPUS mem=$1_MEM time=$1_TIME partition=$1_PARTITION
    echo "--nodes=$2 --ntasks-per-node=$3 --cpus-per-task=$cpus --mem=$mem --time=$time"
    if [[ -n ${partition:-$PARTITION} ]]; then echo "--partition=${partition:-$PARTITION}"; fi
    for option in account qos reservation constraint; do
        local -n value=${option^^}
        [[ -z $value || $kind-$option == CPU-constraint ]] || echo "--$option=$value"
    done
    if ((gpus)); then echo "--gpus-per-node=${GPU_TYPE:+$GPU_TYPE:}$gpus"; fi
}

job='' # the job that the next step waits for
submitted_jobs=()
submit_step() { # NAME "OPTIONS" SETTINGS...: submit a step, which waits for $job
    local name=$1 flags
    read -r -a flags <<<"$2"
    shift 2
    if [[ -n $job ]]; then flags+=("--dependency=afterok:$job" --kill-on-invalid-dep=yes); fi
    if [[ $name == preprocess ]]; then flags+=("--output=$run/slurm/%x-%A_%a.log"); else flags+=("--output=$run/slurm/%x-%j.log"); fi
    set -- "${flags[@]}" "$REPO/jobs/$name.sbatch" "$@"
    if [[ -n $dry_run ]]; then
        printf '%q ' sbatch "$@"
        echo
        submitted="<$name>"
        return
    fi
    submitted=$(sbatch --parsable "$@")
    submitted=${submitted%%;*} # JOB;CLUSTER if there are several clusters
    submitted_jobs+=("$submitted")
    printf '%-11s job %s\n' "$name" "$submitted"
}
# an incomplete chain is cancelled
trap 'echo "error: not all jobs could be submitted" >&2; if ((${#submitted_jobs[@]})); then scancel "${submitted_jobs[@]}"; fi' ERR

skipping=yes
steps=() # to submit
for name in "${STEPS[@]}"; do
    [[ $name != "$from" ]] || skipping=
    [[ -n $skipping ]] || steps+=("$name")
done
is_selected() { [[ " ${steps[*]} " == *" $1 "* ]]; }

for setting in "${both[@]}"; do [[ $setting == data=* ]] || shared+=("$setting"); done
preprocess=("out=$(hydra_quote "$shards")" "${both[@]}" "${preprocess[@]}")
read_from=$shards # local:// is read through the cache of remote shards
[[ -z $STAGE_DIR || $shards == *://* ]] || read_from=local://$(realpath -m "$shards")
train=("+exp=$experiment" "run=$(hydra_quote "$run")" "shards=$(hydra_quote "$read_from")" "${shared[@]}" "${train[@]}")
generate=("run=$(hydra_quote "$run")" "out=$(hydra_quote "$run/generated/clip.wav")" "${generate[@]}")
evaluate=("run=$(hydra_quote "$run")" "shards=$(hydra_quote "$shards")" "${evaluate[@]}")

checked=() # the settings of all steps, for one process that validates them
for name in "${steps[@]}"; do
    if [[ $name != merge ]]; then
        declare -n step_settings=$name
        checked+=(${checked[@]:+--} "$name" "${step_settings[@]}")
    fi
done
if [[ -z $unchecked ]]; then
    status=0
    "${PYTHON[@]}" -m pipeline.check "${checked[@]}" || status=$?
    ((status == 0)) || ((status == 2)) ||
        refuse "the settings cannot be validated here: set VENV, MODULES or CONTAINER in jobs/site.env to a Python with" \
            "this package, or submit with --unchecked"
    ((status == 0)) || refuse "nothing was submitted"
fi

[[ -n $dry_run ]] || mkdir -p "$run/slurm"
infer=$(sbatch_options INFER 1 1 "$INFER_GPUS" | xargs)
if is_selected preprocess; then
    encode=$(sbatch_options ENCODE 1 1 "$ENCODE_GPUS" | xargs)
    submit_step preprocess "$encode --array=0-$((ENCODE_PARTS - 1))${ENCODE_LIMIT:+%$ENCODE_LIMIT}" "${preprocess[@]}"
    job=$submitted
fi
if is_selected merge; then
    submit_step merge "$(sbatch_options CPU 1 1 0 | xargs)" "$shards"
    job=$submitted
fi
if is_selected train; then
    submit_step train "$(sbatch_options TRAIN "$TRAIN_NODES" "$TRAIN_RANKS" "$TRAIN_GPUS" | xargs)" "${train[@]}"
    job=$submitted
fi
if is_selected generate; then submit_step generate "$infer" "${generate[@]}"; fi
if is_selected evaluate; then submit_step evaluate "$infer" "${evaluate[@]}"; fi
if [[ -z $dry_run ]]; then echo "logs: $run/slurm; status: squeue --me"; fi
