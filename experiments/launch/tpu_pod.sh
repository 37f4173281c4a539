#!/usr/bin/env bash
# Starts a run on all hosts of a Cloud TPU slice and returns; each host starts its process again while that helps:
#   TPU=NAME ZONE=ZONE experiments/launch/tpu_pod.sh --config=imagenet:goyal90,resnet50 --workdir=/mnt/shared/resnet50
# What each says is in resnet_jax.log in its home. To stop, saved, give this command to all of them:
#   pkill -TERM -f '[r]esnet-jax train'
set -euo pipefail

train=$(printf '%q ' resnet-jax train --joining_seconds=600 "$@")
loop="until $train; do
    code=\$?
    echo \"resnet-jax ended with \$code\"
    case \$code in
        70 | 71 | 72 | 73 | 75 | 134 | 137 | 142 | 143) sleep 10 ;;
        *) exit \$code ;;
    esac
done"
# Detached: the run outlives the connection that started it.
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="nohup bash -c $(printf %q "$loop") >> resnet_jax.log 2>&1 < /dev/null &"
