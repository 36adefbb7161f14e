#!/bin/bash
# Runs the runner until it has nothing more to do, and starts it again where run-helper.sh says so (2).
# The exit status says nothing about the job: it is 0 for everything else.

root=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")

fresh_helper() {
    cp -f "$root/run-helper.sh.template" "$root/run-helper.sh"
}

plain() {
    while true; do
        fresh_helper
        "$root/run-helper.sh" $*
        if [[ $? -ne 2 ]]; then
            echo "Exiting runner..."
            exit 0
        fi
        echo "Restarting runner..."
    done
}

# With RUNNER_MANUALLY_TRAP_SIG the helper has a process group of its own: TERM and INT are passed on to it as INT,
# and its end is awaited. A signal that interrupted the wait is the exit status: 143 for TERM.
trapping() {
    set -m
    local signaled=""
    trap 'signaled=1; kill -INT -- -"$helper"' INT TERM
    while true; do
        fresh_helper
        "$root/run-helper.sh" $* &
        helper=$!
        wait "$helper"
        code=$?
        if [[ -n "$signaled" ]]; then
            wait "$helper"
        fi
        if [[ $code -ne 2 ]]; then
            echo "Exiting runner..."
            trap - INT TERM
            exit "$code"
        fi
        echo "Restarting runner..."
    done
}

if [[ -z "$RUNNER_MANUALLY_TRAP_SIG" ]]; then
    plain $*
else
    trapping $*
fi
