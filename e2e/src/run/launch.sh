# Writes the process's own line of /proc into the folder "$1", then becomes the program.
# It does so itself, before the program runs, so that no moment exists in which the program
# runs unrecorded (the parent may be killed at any time). exec keeps the pid and start time.
record=$1/$$
shift
read -r line <"/proc/$$/stat" && printf '%s\n' "$line" >"$record" && exec "$@"
exit 126
