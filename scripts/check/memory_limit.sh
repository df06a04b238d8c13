# Sourced: a hard limit for the memory of commands, by a memory cgroup where this user may make one.
#
#   limit_memory BYTES        makes the group; without one, `limited` runs commands as they are and $group is empty
#   limited COMMAND …         runs a command inside it, which is killed past it
#   unlimit_memory            removes the group

group=

limit_memory() {
  if mkdir "/sys/fs/cgroup/memory/tune-$$" 2>/dev/null; then
    group=/sys/fs/cgroup/memory/tune-$$
    echo "$1" > "$group/memory.limit_in_bytes"
  elif mkdir "/sys/fs/cgroup/tune-$$" 2>/dev/null && [ -e "/sys/fs/cgroup/tune-$$/memory.max" ]; then
    group=/sys/fs/cgroup/tune-$$
    echo "$1" > "$group/memory.max"
  fi
}

limited() {
  if [ -n "$group" ]; then (echo $BASHPID > "$group/cgroup.procs" && exec "$@"); else "$@"; fi
}

unlimit_memory() { [ -z "$group" ] || rmdir "$group" 2>/dev/null || true; }
