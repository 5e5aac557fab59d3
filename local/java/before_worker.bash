# Bash reads this before pyflink-udf-runner.sh, which quotes no path: with this, a path may hold blanks.
unset BASH_ENV # not for the bash that a learner may start
IFS=$'\n'
set -f
