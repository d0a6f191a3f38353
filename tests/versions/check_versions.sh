#!/usr/bin/env bash
# Test the pipeline with the lowest and with the newest versions that pyproject.toml allows.
#
#   tests/versions/check_versions.sh FOLDER [lowest] [newest]
#
# uv installs each set into its own environment in FOLDER: about 6 GB of disk and 3 GB of downloads. The configuration of
# pip, such as constraints of this machine, is ignored. `lowest` combines the lowest versions of the packages in
# pyproject.toml with the newest versions of their dependencies; its torchaudio is built for another torch.
set -Eeuo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
sets=("${@:2}")
[ ${#sets[@]} -gt 0 ] || sets=(lowest newest)
packages=(-r "$repo/pyproject.toml" --extra notes --extra demo --extra http "pytest>=8.2" "pytest-timeout>=2.3" "hypothesis>=6.100")
cd "$repo"
export OMP_NUM_THREADS=1 WANDB_MODE=offline

run() { # run a command; show its output if it fails
    echo "+ $*"
    "$@" >"$work/output.txt" 2>&1 || {
        cat "$work/output.txt"
        echo "$name versions: failed: $*" >&2
        exit 1
    }
}

for name in "${sets[@]}"; do
    case $name in
        lowest) resolution=lowest-direct ;;
        newest) resolution=highest ;;
        *) echo "$name: expected lowest or newest" >&2 && exit 2 ;;
    esac
    environment=$folder/$name work=$folder/work-$name
    rm -rf "$work" && mkdir -p "$work"
    run uv venv --clear --python "${PYTHON:-python3}" "$environment"
    run uv pip install --python "$environment/bin/python" --resolution "$resolution" "${packages[@]}"
    [ "$name" = lowest ] || run uv pip install --python "$environment/bin/python" datasets # reads the shards
    run uv pip install --python "$environment/bin/python" --no-deps "tinysoundfont>=0.3" # without its playback, which needs PortAudio
    uv pip list --python "$environment/bin/python" | grep -E "^(torch|torchaudio|transformers|deepspeed|numpy|wandb|gradio|webdataset) "
    export PATH="$environment/bin:$PATH"

    shards=$work/shards run_folder=$work/run
    run python -m pipeline.preprocess data=notes data.root="$work/notes" data.scan_cache_dir="$work/scan_cache" data.clips=40 \
        data.seconds=1 out="$shards" codec=encodec_embedded embedder=encodecmae_tiny
    run python -m pipeline.shards verify "$shards"
    [ "$name" = lowest ] || HF_HOME=$work/hub run python -c "
from datasets import load_dataset
rows = load_dataset('webdataset', data_files={'train': '$shards/train-*.tar'}, split='train')
assert len(rows[0]['codes.npy']) == 8 and rows[0]['json']['labels'], rows[0]"
    train=(+exp=quickstart shards="$shards" model.layers=1 trainer.micro_batch=2 trainer.val_every=2 trainer.log_every=1)
    ranks=(deepspeed --num_gpus 2 --master_port "${PORT:-29731}" pipeline/train.py)
    run "${ranks[@]}" "${train[@]}" run="$run_folder" trainer.steps=2
    run "${ranks[@]}" "${train[@]}" run="$run_folder" trainer.steps=4 # resume on the same ranks
    for stage in zero1 zero3; do # each stage has its own checkpoint format; resume on another number of ranks
        run "${ranks[@]}" "${train[@]}" run="$run_folder-$stage" deepspeed=$stage trainer.steps=2
        run python -m pipeline.train "${train[@]}" run="$run_folder-$stage" deepspeed=$stage trainer.steps=4
    done
    prompt=$(find "$work/notes" -name "*.wav" | sort | head -n 1)
    run python -m pipeline.generate run="$run_folder" prompt="$prompt" out="$work/a.wav" seconds=0.5
    run python -m pipeline.generate from="$work/a.json" out="$work/again.wav"
    cmp "$work/a.wav" "$work/again.wav"
    run python -m pipeline.evaluate run="$run_folder" shards="$shards" n=2
    run python -m pipeline.report run="$run_folder"
    run python -m pipeline.compare runs="[$run_folder]" shards="$shards" n=2 benchmark_batch=1 out="$work/compare"
    run python -m pytest -q -p no:cacheprovider -m "not slow" tests/models/test_codec_gpt.py tests/generation/test_sampling.py \
        tests/data/test_dataloader.py tests/data/test_external_shards.py tests/audio/test_codec.py tests/webui/test_demo.py \
        tests/training/test_trainer.py::test_skipped_step_changes_nothing # fails with DeepSpeed below 0.19.8
    tail -n 1 "$work/output.txt"
    rm -rf "$work"
    echo "$name versions: passed"
done
