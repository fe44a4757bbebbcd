#!/bin/sh
# PID 1 of the guest: mounts, all controllers, then the suites that the kernel's command line names as conformance.run=suite:runtime:file,...
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts /dev/pts 2>/dev/null || { mkdir -p /dev/pts; mount -t devpts devpts /dev/pts; }
mkdir -p /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
for module in overlay loop tun veth dummy bridge; do modprobe "$module" 2>/dev/null; done
ip link set lo up
mkdir /sys/fs/cgroup/conformance
echo $$ > /sys/fs/cgroup/conformance/cgroup.procs
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control; done
stty -onlcr < /dev/console 2>/dev/null
runs=$(sed -n 's/.*conformance.run=\([^ ]*\).*/\1/p' /proc/cmdline)
for run in $(echo "$runs" | tr , ' '); do
    suite=${run%%:*} rest=${run#*:}
    name=${rest%%:*} only=${rest#*:}
    [ "$only" = "$rest" ] && only=
    LIMIT=900 sh /conformance/run.sh "$suite" "$name" "/conformance/bin/$name" "/conformance/$suite.$name.log" $only > /dev/console
    if grep -q conformance.logs /proc/cmdline; then sed 's/^/| /' "/conformance/$suite.$name.log" > /dev/console; fi
done
echo "@ all done" > /dev/console
sync
echo o > /proc/sysrq-trigger
sleep 60
