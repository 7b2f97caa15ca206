#!/bin/sh
# QEMU goes on where the first kernel has jumped to the purgatory (or to the crash kernel without one).
# state.json says what was handed over. Arguments are added to the command line.
# Exit: 0 the machine was switched off, or reset; 3 the boot CPU has stopped for good; else QEMU's own status.
cd "$(dirname "$0")" || exit
work=$(mktemp -d) && mkfifo "$work/qmp.in" "$work/qmp.out" || exit
status=0

ask() {
    printf '%s\n' "$1" >&3
    while read -r answer <&4; do
        case $answer in '{"return"'* | '{"error"'*) return ;; esac
    done
}

watch() {
    exec 3<>"$work/qmp.in" 4<>"$work/qmp.out"
    ask '{"execute": "qmp_capabilities"}'
    same=0 before=
    while [ "$same" -lt 3 ] && sleep 1; do
        ask '{"execute": "query-status"}'
        case $answer in *'"running": true'*) ;; *) same=0 before=; continue ;; esac
        ask '{"execute": "human-monitor-command", "arguments": {"command-line": "info registers"}}'
        case $answer in
            "$before") same=$((same + 1)) ;;
            *PSTATE=?????3c*) same=0 before=$answer ;;
            *) same=0 before= ;;
        esac
    done
    : >"$work/stopped"
    ask '{"execute": "quit"}'
}

exec 5<&0
@COMMAND@ -chardev pipe,id=watch,path="$work/qmp" -mon chardev=watch,mode=control "$@" <&5 &
qemu=$!
watch >/dev/null 2>&1 &
watcher=$!
trap 'status=130; kill "$qemu"' INT
trap 'status=143; kill "$qemu"' TERM HUP
wait "$qemu"
ended=$?
while kill -0 "$qemu" 2>/dev/null; do  # a signal ends a wait, too
    wait "$qemu"
    ended=$?
done
[ "$status" -ne 0 ] || status=$ended
if [ -e "$work/stopped" ]; then
    echo "run-qemu.sh: the boot CPU has stopped for good; QEMU is ended" >&2
    status=3
fi
kill "$watcher" 2>/dev/null
rm -rf "$work"
exit "$status"
