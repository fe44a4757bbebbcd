# crun, its filter's cache warm, then cold.
exec > /dev/kmsg 2>&1
count=$(sed -n 's/.*bench.count=\([0-9]*\).*/\1/p' /proc/cmdline)
cd /opt/bench/bundle
byre-bench command "warm-up" 3 crun run %
byre-bench command "warm" "$count" crun run %
for number in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf /run/crun/.cache
    byre-bench command "cold" 1 crun run %
done
echo "bench: done"
