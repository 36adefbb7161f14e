#!/bin/bash
# Keeps what the runner's own process will need of the environment that it is configured in: .path, and .env,
# where a line that is there already is left as it is.

echo "$PATH" > .path
touch .env

for name in LANG JAVA_HOME ANT_HOME M2_HOME ANDROID_HOME GRADLE_HOME NVM_BIN NVM_PATH; do
    if [[ -n "${!name}" ]] && ! grep -q "^$name=" .env; then
        echo "$name=${!name}" >> .env
    fi
done
