# The memory of every top-level cgroup, after a minute of rest.
sleep 60
for group in /sys/fs/cgroup/*/; do
    read -r current < "$group/memory.current" || continue
    anonymous=0 file=0
    while read -r key value; do
        case $key in anon) anonymous=$value ;; file) file=$value ;; esac
    done < "$group/memory.stat"
    echo "bench: memory $(basename "$group") $current $anonymous $file" > /dev/kmsg
done
echo "bench: done" > /dev/kmsg
