#!/usr/bin/env bash
# From a corpus to sound, in one command on the login node: preprocess, merge, train, generate and evaluate, each waiting
# for the one before; when one fails, those that wait for it are cancelled. The site's settings are in jobs/site.env.
#
#   jobs/submit.sh delay_gpt2
#   jobs/submit.sh delay_gpt2 --preprocess data=jamendo data.root=/data/mtg --train model=medium trainer.steps=500000
#   jobs/submit.sh delay_gpt2 codec.codebooks=4 --generate 'prompt=[a.wav,b c.wav]' seconds=10 --evaluate n=256
#   jobs/submit.sh delay_gpt2 --from train          the cache is there already
#   jobs/submit.sh delay_gpt2 --dry-run             print what would be submitted
#
# The first word is an experiment of conf/exp. Settings right behind it go to preprocess and train, those behind
# --preprocess, --train, --generate, --evaluate to that step. --shards DIR and --run DIR say where the cache and the run
# lie (shards/DATA and runs/EXPERIMENT below the current folder), for all steps: run= and shards= are refused. The
# settings of every step are checked before anything is submitted (--unchecked: not, where this machine has no Python for
# it). The jobs' logs are in RUN/slurm. The same command again goes on where the last one stopped.
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
[[ -n $experiment && $experiment != -* ]] || refuse "give an experiment first: jobs/submit.sh delay_gpt2 (--help says more)"
[[ -f $REPO/conf/exp/$experiment.yaml ]] || refuse "there is no conf/exp/$experiment.yaml"
shift

shards='' run="runs/$experiment" from=preprocess data=nsynth dry='' unchecked='' step=both
both=() shared=() preprocess=() train=() generate=() evaluate=() # the words for each; a step is looked up by its name
while (($#)); do
    case $1 in
    --shards | --run | --from)
        (($# > 1)) || refuse "$1 needs a word after it"
        printf -v "${1#--}" %s "$2"
        shift
        ;;
    --dry-run) dry=yes ;;
    --unchecked) unchecked=yes ;;
    --preprocess | --train | --generate | --evaluate) step=${1#--} ;;
    --*) refuse "there is no $1" ;;
    run=*) refuse "$1: each step is told the run by --run DIR (now $run)" ;;
    *)
        case $step:$1 in # what would part a step from the one before
        both:shards=* | preprocess:shards=* | both:out=* | preprocess:out=*)
            refuse "$1: each step is told the cache by --shards DIR; --generate out=... says where the sounds go"
            ;;
        esac
        declare -n words=$step
        words+=("$1")
        [[ $1 != data=* || $step == train ]] || data=${1#data=}
        ;;
    esac
    shift
done
[[ " ${STEPS[*]} " == *" $from "* ]] || refuse "--from $from: give one of ${STEPS[*]}"
shards=${shards:-shards/$data}

quoted() { # a value in Hydra's quotes, where a backslash counts before a quote only
    local value=$1
    printf "'%s'" "${value//\'/\\\'}"
}

options() { # NODES RANKS GPUS CPUS MEM TIME
    local gpus=$3
    echo "--nodes=$1" "--ntasks-per-node=$2" "--cpus-per-task=$4" "--mem=$5" "--time=$6"
    if [[ -n ${PARTITION:-} ]]; then echo "--partition=$PARTITION"; fi
    if [[ -n ${ACCOUNT:-} ]]; then echo "--account=$ACCOUNT"; fi
    if ((gpus)); then echo "--gpus-per-node=${GPU_TYPE:+$GPU_TYPE:}$gpus"; fi
}

job='' # the one to wait for
made=()
queue() { # NAME "OPTIONS" WORDS...: submit a step that waits for the job before
    local name=$1 flags
    read -r -a flags <<<"$2"
    shift 2
    if [[ -n $job ]]; then flags+=("--dependency=afterok:$job" --kill-on-invalid-dep=yes); fi
    if [[ $name == preprocess ]]; then flags+=("--output=$run/slurm/%x-%A_%a.log"); else flags+=("--output=$run/slurm/%x-%j.log"); fi
    set -- "${flags[@]}" "$REPO/jobs/$name.sbatch" "$@"
    if [[ -n $dry ]]; then
        printf '%q ' sbatch "$@"
        echo
        submitted="<$name>"
        return
    fi
    submitted=$(sbatch --parsable "$@")
    submitted=${submitted%%;*} # JOB;CLUSTER where there are several clusters
    made+=("$submitted")
    printf '%-11s job %s\n' "$name" "$submitted"
}
# half a chain is of no use
trap 'echo "error: not all could be submitted" >&2; if ((${#made[@]})); then scancel "${made[@]}"; fi' ERR

skipping=yes
steps=() # those that are submitted
for name in "${STEPS[@]}"; do
    [[ $name != "$from" ]] || skipping=
    [[ -n $skipping ]] || steps+=("$name")
done
wanted() { [[ " ${steps[*]} " == *" $1 "* ]]; }

for word in "${both[@]}"; do [[ $word == data=* ]] || shared+=("$word"); done
preprocess=("out=$(quoted "$shards")" "${both[@]}" "${preprocess[@]}")
train=("+exp=$experiment" "run=$(quoted "$run")" "shards=$(quoted "$shards")" "${shared[@]}" "${train[@]}")
generate=("run=$(quoted "$run")" "out=$(quoted "$run/generated/clip.wav")" "${generate[@]}")
evaluate=("run=$(quoted "$run")" "shards=$(quoted "$shards")" "${evaluate[@]}")

checked=() # the settings of all steps, which one process composes and checks
for name in "${steps[@]}"; do
    if [[ $name != merge ]]; then
        declare -n settings=$name
        checked+=(${checked[@]:+--} "$name" "${settings[@]}")
    fi
done
if [[ -z $unchecked ]]; then
    status=0
    "${PYTHON[@]}" -m pipeline.check "${checked[@]}" || status=$?
    ((status == 0)) || ((status == 2)) ||
        refuse "settings cannot be checked here: VENV, MODULES or CONTAINER in jobs/site.env names the Python with this" \
            "package; --unchecked submits without"
    ((status == 0)) || refuse "nothing is submitted"
fi

[[ -n $dry ]] || mkdir -p "$run/slurm"
listen=$(options 1 1 "$LISTEN_GPUS" "$LISTEN_CPUS" "$LISTEN_MEM" "$LISTEN_TIME" | xargs)
if wanted preprocess; then
    encode=$(options 1 1 "$ENCODE_GPUS" "$ENCODE_CPUS" "$ENCODE_MEM" "$ENCODE_TIME" | xargs)
    queue preprocess "$encode --array=0-$((ENCODE_PARTS - 1))" "${preprocess[@]}"
    job=$submitted
fi
if wanted merge; then
    queue merge "$listen" "$shards"
    job=$submitted
fi
if wanted train; then
    learn=$(options "$TRAIN_NODES" "$TRAIN_RANKS" "$TRAIN_GPUS" "$TRAIN_CPUS" "$TRAIN_MEM" "$TRAIN_TIME" | xargs)
    queue train "$learn" "${train[@]}"
    job=$submitted
fi
if wanted generate; then queue generate "$listen" "${generate[@]}"; fi
if wanted evaluate; then queue evaluate "$listen" "${evaluate[@]}"; fi
if [[ -z $dry ]]; then echo "logs in $run/slurm; squeue --me shows where it stands"; fi
