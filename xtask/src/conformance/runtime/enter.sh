# Runs in namespaces of its own: makes the Debian root this process's root, with cgroup v2 of its own, and executes the rest of the arguments in it.
set -eu
root=$1
shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount --rbind /dev "$root/dev"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
ip link set lo up
cd "$root"
# Not chroot: what joins this mount namespace later gets the namespace's own root.
pivot_root . .
umount -l .
cd /
exec "$@"
