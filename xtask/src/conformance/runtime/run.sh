# Runs inside the Debian root, on the host or in the guest: one suite with one runtime.
# Arguments: suite, name of the runtime, its program, where what is printed goes; then a file or program of the suite, if not all.
# For each test it prints "@ <suite> <runtime> <passed|failed|skipped> <file>: <test>"; nothing for one that did not come to its end.
set -u
suite=$1 name=$2 program=$3 log=$4 only=${5:-}
export LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
: > "$log"
say() { # file: TAP lines to ours
    awk -v head="@ $suite $name" -v file="$1" '
        /^ok [0-9]+/ || /^not ok [0-9]+/ {
            verdict = ($1 == "not") ? "failed" : "passed"
            line = $0
            sub(/^(not )?ok [0-9]+ *(- )?/, "", line)
            if (line ~ /# *SKIP/ || line ~ / # skip/) {
                if (verdict == "passed") verdict = "skipped"
                sub(/ *# *(SKIP|skip).*/, "", line)
            }
            sub(/ in [0-9]+ms$/, "", line)
            print head, verdict, file ": " line
            fflush()
        }'
}
# What a file of a suite printed, by way of a file: a pipe would wait for whatever the suite left running.
told() {
    tee -a "$log" < /tmp/out | say "$1"
}
case $suite in
crun)
    cd /conformance/crun/tests || exit 1
    for file in test_*.py; do
        [ -n "$only" ] && [ "$file" != "$only" ] && continue
        echo "== $file" >> "$log"
        INIT=/conformance/crun/tests/init OCI_RUNTIME=$program timeout -k 5 "${LIMIT:-300}" python3 "$file" > /tmp/out 2>> "$log" < /dev/null
        told "$file"
    done
    ;;
runc)
    cd /conformance/runc/tests/integration || exit 1
    for file in *.bats; do
        [ -n "$only" ] && [ "$file" != "$only" ] && continue
        echo "== $file" >> "$log"
        RUNC=$program timeout -k 5 "${LIMIT:-180}" bats --tap "$file" > /tmp/out 2>> "$log" < /dev/null
        told "$file"
    done
    ;;
tools)
    cd /conformance/tools || exit 1
    for file in *.t; do
        [ -n "$only" ] && [ "$file" != "$only" ] && continue
        echo "== $file" >> "$log"
        RUNTIME=$program timeout -k 5 "${LIMIT:-120}" "./$file" > /tmp/tools.out 2>> "$log" < /dev/null
        code=$?
        cat /tmp/tools.out >> "$log"
        # One program is one test. One that says only that it skips has tested nothing.
        verdict=passed
        if ! grep -qE '^(not )?ok ' /tmp/tools.out; then verdict=failed
        elif [ $code -ne 0 ] || grep '^not ok' /tmp/tools.out | grep -qv '# TO[D]O'; then verdict=failed
        elif ! grep -E '^ok ' /tmp/tools.out | grep -qvi '# *skip'; then verdict=skipped
        fi
        echo "@ $suite $name $verdict ${file%.t}: program"
    done
    ;;
engines)
    . /conformance/engines.sh
    ;;
esac
echo "@ end $suite $name"
