# Removes what is recorded under the folder "$1": processes, cgroups, mounts, network
# namespaces, bridges, and at last the folder. Everything is found by the records that our own
# code wrote (a pid counts only together with its start time), never by a name pattern.
# Safe to run twice, and for two runs at once.
dir=$1
case $dir in
/*/*) ;;
*)
    echo "cleanup.sh: refusing the folder '$dir'" >&2
    exit 2
    ;;
esac
[ -d "$dir" ] || exit 0

records() { find "$dir" -path "*/$1/*" -type f 2>/dev/null; }

# Prints state and start time in a line of /proc/PID/stat. The command name may hold blanks and
# brackets, so count from the last bracket: the state is field 3, the start time field 22.
state_and_start() {
    set -- ${1##*) }
    echo "$1 ${20}"
}

# Prints the recorded processes that still run.
living() {
    for record in $(records processes); do
        pid=${record##*/}
        { read -r then <"$record" && read -r now <"/proc/$pid/stat"; } 2>/dev/null || continue
        now=$(state_and_start "$now")
        then=$(state_and_start "$then")
        [ "${now#* }" = "${then#* }" ] && [ "${now% *}" != Z ] && echo "$pid"
    done
}

round=0
while pids=$(living); [ -n "$pids" ]; do
    if [ $round -eq 100 ]; then
        # The records stay, so that a later run tries again.
        echo "cleanup.sh: these processes do not end:" $pids >&2
        exit 1
    fi
    for pid in $pids; do
        # Without "--": dash takes that for a number, and then kills nothing.
        kill -9 "-$pid" "$pid" 2>/dev/null
    done
    round=$((round + 1))
    sleep 0.02
done

# A container runtime's children leave its process group, but never its cgroup.
cgroup_folders() {
    for record in $(records cgroups); do
        name=${record##*/}
        for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
            [ -d "$root/$name" ] && find "$root/$name" -depth -type d 2>/dev/null
        done
    done
}
folders=$(cgroup_folders)
round=0
while [ -n "$folders" ] && [ $round -lt 50 ]; do
    pids=$(for folder in $folders; do cat "$folder/cgroup.procs" 2>/dev/null; done | sort -u)
    [ -n "$pids" ] || break
    kill -9 $pids 2>/dev/null
    round=$((round + 1))
    sleep 0.05
done

# Newest first, so that an inner mount goes before the one it lies in.
for mount in $(awk -v dir="$dir/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | tac); do
    umount -l "$mount" 2>/dev/null
done

# containerd's shims and the kubelet leave these outside of our folder.
find "$dir" -path '*/containerd/state/*' -name address -type f 2>/dev/null | while read -r file; do
    { read -r address <"$file" || [ -n "$address" ]; } 2>/dev/null
    case $address in
    unix:///run/containerd/s/*) rm -f "${address#unix://}" ;;
    esac
done
[ -d /var/log/containers ] && find /var/log/containers -type l -lname "$dir/*" -delete

for record in $(records netns); do
    ip netns del "${record##*/}" 2>/dev/null
done
for record in $(records bridges); do
    ip link del "${record##*/}" 2>/dev/null
done
for folder in $(cgroup_folders); do
    rmdir "$folder" 2>/dev/null
done

# Nothing may be deleted through a mount that could not be taken off.
if awk -v dir="$dir/" 'index($5, dir) == 1 { found = 1 } END { exit !found }' /proc/self/mountinfo; then
    echo "cleanup.sh: a mount is left under $dir" >&2
    exit 1
fi
if [ -z "$TENSILE_KEEP_LOGS" ] && [ ! -e "$dir/keep-logs" ]; then
    rm -rf "$dir"
    exit
fi
# A whole run (it has the lock file) moves out of the way of later runs, which remove dead ones.
[ -e "$dir/lock" ] && whole_run=yes
find "$dir" ! -type d ! -name '*.log' ! -path '*/log-*' -delete 2>/dev/null
find "$dir" -depth -type d -empty -delete 2>/dev/null
if [ -n "$whole_run" ] && [ -d "$dir" ]; then
    kept=${dir%/*/*}/kept-logs
    mkdir -p "$kept" && mv "$dir" "$kept/"
fi
exit 0
