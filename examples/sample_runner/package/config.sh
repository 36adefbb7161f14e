#!/bin/bash
# Registers this runner: config.sh --url URL --token TOKEN [--unattended --ephemeral --labels a,b --name N ...]
# config.sh remove: forgets the registration.

if [[ $(id -u) -eq 0 && -z "$RUNNER_ALLOW_RUNASROOT" ]]; then
    echo "Must not run with sudo"
    exit 1
fi

cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" || exit 1
source ./env.sh

if [[ "$1" == "remove" ]]; then
    ./bin/Runner.Listener "$@"
else
    ./bin/Runner.Listener configure "$@"
fi
