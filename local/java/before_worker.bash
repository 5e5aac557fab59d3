# Bash reads this file before pyflink-udf-runner.sh, which does not quote paths.
# It lets them contain blanks.
unset BASH_ENV # a bash that a learner starts must not read this file
IFS=$'\n'
set -f
