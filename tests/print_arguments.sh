#!/bin/sh
# Stands in for Python where a test wants to see what a shell script would run: one argument a line.
printf '%s\n' "$@"
